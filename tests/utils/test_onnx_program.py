"""Exports in a row: the table of operators is read once, programs are the same, torch is left as it was."""

import pytest
import torch
from torch.onnx._internal.exporter import _registration

from lighten.delivery.runtimes.quiet import quiet
from lighten.utils import onnx_program as subject
from lighten.utils.onnx_program import onnx_program

TABLE = _registration.ONNXRegistry
NET = torch.nn.Linear(3, 2).eval()


def exported(**settings):
    with quiet():
        program = onnx_program(NET, (torch.ones(1, 3),), **settings)
    return program.model_proto.graph.SerializeToString(deterministic=True)


@pytest.fixture
def read(monkeypatch):
    """Return the calls that read the table, from now on; operators that exports define are defined already."""
    exported()
    calls, own = [], TABLE.from_torchlib
    monkeypatch.setattr(TABLE, subject.READER, staticmethod(lambda **given: (calls.append(given), own(**given))[1]))
    return calls


def directly():
    with quiet():
        program = torch.onnx.export(NET, (torch.ones(1, 3),), dynamo=True, verbose=False)
    return program.model_proto.graph.SerializeToString(deterministic=True)


def test_the_table_is_read_in_the_first_export_of_an_operator_set_alone(read):
    first = exported()
    assert len(read) == 1
    assert exported() == first
    assert len(read) == 1
    assert exported(opset_version=22) == exported(opset_version=22)
    assert len(read) == 2
    assert first == directly()


def test_an_operator_defined_in_between_is_known(read):
    """As those of ``quantized_decomposed``, which torch defines when they are first imported."""
    exported()
    with torch.library._scoped_library("lighten_tests", "DEF") as library:
        library.define("one(Tensor x) -> Tensor")
        exported()
    assert len(read) == 2


def test_what_one_export_adds_is_not_in_the_next():
    expected = exported()
    assert exported(custom_translation_table={torch.ops.aten.linear.default: lambda x, weight, bias: x}) != expected
    assert exported() == expected


def test_torch_is_left_as_it_was_after_a_failure():
    before = TABLE.__dict__[subject.READER]
    with pytest.raises(torch.onnx.errors.OnnxExporterError), quiet():
        onnx_program(NET, (torch.ones(1, 4),))
    assert TABLE.__dict__[subject.READER] is before


def test_another_torch_exports_as_it_does(monkeypatch):
    monkeypatch.setattr(subject, "READER", "not_there")
    assert exported() == directly()
