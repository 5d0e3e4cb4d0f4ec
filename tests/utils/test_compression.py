"""The record of what was done to a model: where it stands, and who takes it along."""

import copy
import io

import torch
from torch import nn

from lighten.utils.clone import clone
from lighten.utils.compression import CompressionRecord, record_, record_of


class Wrapper(nn.Module):
    """Forwards attributes to the model inside, as wrappers of libraries do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def test_a_model_without_a_record_is_left_as_it_is():
    model = nn.Linear(2, 2)
    before = set(vars(model))
    assert record_of(model) == CompressionRecord()
    assert set(vars(model)) == before


def test_fields_change_one_by_one_and_an_empty_record_goes():
    model = nn.Linear(2, 2)
    before = set(vars(model))
    record_(model, spec={"name": "linear"})
    record_(model, quantization={"mode": "float16"})
    assert record_of(model) == CompressionRecord(spec={"name": "linear"}, quantization={"mode": "float16"})
    record_(model, spec=None, quantization=None)
    assert set(vars(model)) == before


def test_copies_carry_it():
    model = nn.Linear(2, 2)
    record_(model, spec={"name": "linear"})
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), clone(model), torch.load(file, weights_only=False)):
        assert record_of(copied) == record_of(model)
        assert record_of(copied).spec is not record_of(model).spec


def test_attributes_of_earlier_versions_are_read_until_the_record_changes():
    model = nn.Linear(2, 2)
    model.lighten_spec, model.lighten_quantization = {"name": "linear"}, {"mode": "float16"}
    assert record_of(model) == CompressionRecord(spec={"name": "linear"}, quantization={"mode": "float16"})
    record_(model, quantization=None)
    assert record_of(model) == CompressionRecord(spec={"name": "linear"})


def test_a_wrapper_has_the_record_of_the_model_inside_but_none_of_its_own():
    model = nn.Linear(2, 2)
    record_(model, spec={"name": "linear"})
    assert record_of(Wrapper(model)) == record_of(model)
    assert record_of(Wrapper(model), own=True) == CompressionRecord()
