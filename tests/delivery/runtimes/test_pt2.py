"""Files of torch.export: they compute what the model does, to the bit, and one that would run code is not opened."""

import io
import json
import zipfile

import pytest
import torch
from quantization_nets import Residual, lived_in
from torch import nn

from lighten import build_model, calibrate_, export, measure, quantize_, quantize_post_training
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError

EXAMPLE = torch.zeros(2, 1, 8, 8)


def fake_quantized():
    torch.manual_seed(0)
    batches = [torch.randn(8, 1, 8, 8) for _ in range(3)]
    return calibrate_(quantize_(lived_in(Residual(8)), example_input=EXAMPLE), batches)


@pytest.fixture(scope="module")
def model():
    return fake_quantized()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return export(model, EXAMPLE, tmp_path_factory.mktemp("pt2") / "m.pt2", target="pt2")


def answers(path, *inputs, **named):
    with open_runner(path) as runner:
        return runner.run_all(runner.feed((inputs, named)))


def test_a_file_computes_to_the_bit_what_is_trained_in_int8(model, path):
    x = torch.randn(50, 1, 8, 8)
    for size in (1, 7, 50):
        with torch.no_grad():
            assert torch.equal(torch.from_numpy(answers(path, x[:size])[0]), model(x[:size]))
    program = torch.export.load(path)
    assert {str(x.dtype) for x in program.state_dict.values() if x.ndim > 1} == {"torch.int8"}
    with torch.no_grad():
        assert torch.equal(program.module()(x)[0], model(x))  # as anybody loads it


def test_it_is_counted_and_measured_as_the_onnx_file_is(model, path, tmp_path):
    data = [(torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2]))]
    found, onnx = measure(path, data), measure(export(model, EXAMPLE, tmp_path / "m.onnx"), data)
    assert {key: found[key] for key in ("parameters", "macs")} == {key: onnx[key] for key in ("parameters", "macs")}
    assert found["bytes"] == path.stat().st_size
    assert found["runtime"] == "torch.export"


def test_it_holds_neither_pickles_nor_places(path):
    content = path.read_bytes()
    assert b"/root" not in content
    assert __file__.encode() not in content
    with zipfile.ZipFile(path) as archive:
        assert not any(info.file_size for info in archive.infolist() if info.filename.endswith(".pt"))
        assert not any("stack_trace" in archive.read(name).decode() for name in archive.namelist() if "models/" in name)


def test_sizes_are_open_as_they_are_asked_for(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
    file = export(net, torch.randn(2, 3, 16, 16), tmp_path / "m.pt2", target="pt2", dynamic={"input": {2: "height"}})
    x = torch.randn(3, 3, 21, 16)
    assert torch.equal(torch.from_numpy(answers(file, x)[0]), net(x).detach())
    with pytest.raises(UserError, match=r"input is \(3, 3, 21, 20\), expected \(any, 3, any, 16\)"):
        answers(file, torch.randn(3, 3, 21, 20))


def test_tokens_with_keywords_and_several_outputs(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(30, 4)

        def forward(self, input_ids, attention_mask):
            x = self.table(input_ids) * attention_mask[..., None]
            return {"logits": x.mean(1), "states": x}

    net, ids = Words(), torch.randint(30, (2, 6))
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    file = export(net, words, tmp_path / "m.pt2", target="pt2")
    longer = {"attention_mask": torch.ones(3, 9, dtype=torch.int64), "input_ids": torch.randint(30, (3, 9))}
    for found, expected in zip(answers(file, **longer), net(**longer).values(), strict=True):
        assert torch.equal(torch.from_numpy(found), expected.detach())


def test_a_fixed_batch_runs_in_pieces(tmp_path):
    net = nn.Linear(4, 3)
    file = export(net, torch.zeros(2, 4), tmp_path / "m.pt2", target="pt2", batch=4)
    x = torch.randn(6, 4)
    assert abs(answers(file, x)[0] - net(x).detach().numpy()).max() < 1e-6


@pytest.mark.parametrize("mode", ["dynamic", "float16"])
def test_modes_that_it_has_no_form_of_are_refused(mode, tmp_path):
    small = quantize_post_training(build_model("mlp", num_classes=3, input_shape=(1, 8, 8)), mode=mode)
    with pytest.raises(UserError, match=f"target 'pt2' has no form of a model that mode '{mode}' quantized"):
        export(small, EXAMPLE, tmp_path / "m.pt2", target="pt2")


def changed(path, to, change):
    """Write a file whose entries, by the ends of their names, are changed; returns where."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            edit = next((edit for end, edit in change.items() if info.filename.endswith(end)), lambda content: content)
            new.writestr(info.filename, edit(old.read(info.filename)))
    return to


def _edit(old, new):
    def edit(content):
        assert old in content
        return content.replace(old, new)

    return edit


def _call(name):
    return _edit(b"torch.ops.aten.add.Tensor", name)


def _size(text):
    def edit(content):
        graph = json.loads(content)
        assert '"expr_str"' in content.decode()
        return json.dumps(_with_size(graph, text)).encode()

    return edit


def _with_size(value, text):
    if isinstance(value, dict):
        return {key: text if key == "expr_str" else _with_size(item, text) for key, item in value.items()}
    return [_with_size(item, text) for item in value] if isinstance(value, list) else value


def _pickle(_):
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, buffer)
    return buffer.getvalue()


HOSTILE = {
    "a function of Python": ({"model.json": _call(b"torch.os.system")}, "'torch.os.system'"),
    "a loader of libraries": ({"model.json": _call(b"torch.ops.load_library.__call__")}, "load_library"),
    "a getter of attributes": ({"model.json": _call(b"_operator.attrgetter")}, "attrgetter"),
    "a size that is code": ({"model.json": _size("__import__('os').getpid()")}, "__import__"),
    "a size without quotes": ({"model.json": _size("exec(chr(49))")}, r"exec\(chr"),
    "pickled inputs": ({"sample_inputs/model.pt": _pickle}, "the pickle data/sample_inputs/model.pt"),
    "pickled weights": (
        {"weights_config.json": _edit(b'"use_pickle": false', b'"use_pickle":true')},
        "the pickle weight_0",
    ),
    "an object": ({"weights_config.json": _edit(b'"weight_0"', b'"custom_obj_0"')}, "the pickle custom_obj_0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_would_run_code_is_not_opened(name, path, tmp_path, monkeypatch):
    change, says = HOSTILE[name]
    file = changed(path, tmp_path / "x.pt2", change)
    monkeypatch.setattr(torch.export, "load", lambda *args, **kwargs: pytest.fail("it was opened"))
    with pytest.raises(
        UserError, match=f"{says}.*, which may run any code; have it written by lighten.export"
    ) as caught:
        answers(file, EXAMPLE)
    assert "\n" not in str(caught.value)


def test_what_is_only_packed_again_still_runs(path, model, tmp_path):
    assert len(answers(changed(path, tmp_path / "x.pt2", {}), EXAMPLE)[0]) == 2
