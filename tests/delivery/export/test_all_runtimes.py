"""The files besides ONNX, each run by its runtime: what they compute, and that they compute it in integers."""

import contextlib
import errno
import json
import logging
import os
import re
import resource
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantization_nets import Residual, lived_in
from torch import nn

from lighten import build_model, calibrate_, export, measure, quantize_
from lighten.delivery.export.openvino import write_openvino
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError
from lighten.utils.files import DiskError

SUFFIXES = {"openvino": ".xml", "litert": ".tflite", "executorch": ".pte"}
TARGETS = pytest.mark.parametrize("target", SUFFIXES)
QUICK = ["openvino", *(pytest.param(target, marks=pytest.mark.slow) for target in ("litert", "executorch"))]
"""One that takes a second to write a file, and those that take ten."""
SHAPE = (1, 8, 8)
EXAMPLE = torch.zeros(2, *SHAPE)


def images(count, shape=SHAPE, seed=5):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def fake_quantized(model, shape=SHAPE):
    batches = [images(8, shape, seed) for seed in range(3)]
    # 8-bit weights saturate pair sums of x86 processors without VNNI instructions
    return calibrate_(quantize_(lived_in(model), example_input=torch.zeros(2, *shape), weight_bits=7), batches)


def written(model, target, folder, **settings):
    return export(model, EXAMPLE, folder / f"model{SUFFIXES[target]}", target=target, **settings)


def logits(path, x):
    with open_runner(path) as runner:
        return runner.run(runner.feed(((x,), {})))


def expected(model, x):
    with torch.no_grad():
        return model(x).numpy()


@pytest.fixture(scope="module")
def floating():
    torch.manual_seed(0)
    return lived_in(Residual(8))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return fake_quantized(Residual(8))


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    return {target: written(model, target, folder) for target in SUFFIXES}


@TARGETS
def test_a_runtime_agrees_with_fake_quantization_whatever_the_batch(target, model, files):
    x = images(500)
    ours, theirs = expected(model, x), logits(files[target], x)
    assert theirs.dtype == np.float32
    assert (ours.argmax(1) != theirs.argmax(1)).mean() <= 0.006
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(ours).max()
    for size in (1, 7):
        np.testing.assert_allclose(logits(files[target], x[:size]), theirs[:size], rtol=1e-5, atol=1e-6)


def resnet():
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=8)
    return model.to(memory_format=torch.channels_last)  # as recipes train it


@pytest.mark.parametrize("target", QUICK)
def test_a_resnet_flips_next_to_nothing_and_runs_in_integers(target, tmp_path):
    model, x = fake_quantized(resnet(), (1, 28, 28)), images(200, (1, 28, 28))
    path = export(model, torch.zeros(1, 1, 28, 28), tmp_path / f"m{SUFFIXES[target]}", target=target)
    ours, theirs = expected(model, x), logits(path, x)
    assert (ours.argmax(1) != theirs.argmax(1)).sum() <= 2
    assert np.abs(ours - theirs).mean() < 0.01 * np.abs(ours).mean()
    assert convolutions_in_integers(path) == 21


def convolutions_in_integers(path):
    """Count the convolutions of a file; fail where one is computed in floating point, or an add or a pool is."""
    return {".xml": _openvino, ".tflite": _litert, ".pte": _executorch}[path.suffix](path)


def _openvino(path):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    graph = openvino.Core().compile_model(path, "CPU", settings).get_runtime_model()
    kinds = [(op.get_rt_info()["layerType"].astype(str), op.get_rt_info()["runtimePrecision"].astype(str))
             for op in graph.get_ops()]  # fmt: skip
    found = [precision for kind, precision in kinds if kind == "Convolution"]
    assert set(found) <= {"u8", "i8"}
    return len(found)


def _litert(path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    plain.allocate_tensors()
    types = {tensor["index"]: np.dtype(tensor["dtype"]).name for tensor in plain.get_tensor_details()}
    assert types[plain.get_input_details()[0]["index"]] == "int8"
    found = 0
    for operator in plain._get_ops_details():
        read = [types[i] for i in operator["inputs"] if i in types]
        if "CONV" in operator["op_name"]:
            found += 1
            assert read == ["int8", "int8", "int32"]
        if operator["op_name"] not in ("FULLY_CONNECTED", "DEQUANTIZE"):
            assert read[0] == types[operator["outputs"][0]] == "int8", operator["op_name"]
    return found


def _executorch(path):
    nodes, delegates = xnnpack_nodes(path)
    assert delegates == 1
    found = 0
    for kind, types in nodes:
        if "Conv2d" in kind or "DepthwiseConv2d" in kind:
            found += 1
            assert types == ["qint8", "qcint8", "qcint32", "qint8"]
        elif kind not in ("XNNConvert", "XNNFullyConnected", "XNNStaticReshape", "XNNMultiply"):
            assert set(types) == {"qint8"}, kind
    return found


def xnnpack_nodes(path):
    """Return what XNNPACK computes, with the types of its tensors, and the number of pieces; nothing else may run."""
    import executorch.backends.xnnpack.serialization.xnnpack_graph_serialize as serialize
    from executorch.exir._serialize._flatbuffer import _flatc_decompile
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    plan = next(plan for plan in program.execution_plan if plan.name == "forward")
    assert not plan.operators
    assert {delegate.id for delegate in plan.delegates} == {"XnnpackBackend"}
    nodes = []
    for data in program.backend_delegate_data:
        header = serialize.XNNHeader.from_bytes(data.data[: serialize.XNNHeader.EXPECTED_LENGTH])
        start, end = header.flatbuffer_offset, header.flatbuffer_offset + header.flatbuffer_size
        schema, piece = path.parent / "schema.fbs", path.parent / "piece.bin"
        schema.write_bytes(serialize._get_schema_bytes())
        piece.write_bytes(data.data[start:end])
        _flatc_decompile(str(path.parent), str(schema), str(piece), ["--raw-binary"])
        graph = json.loads(re.sub(r"-?\binf\b", "0", piece.with_suffix(".json").read_text()))
        values = [value["xvalue_union"].get("tensor_value", value["xvalue_union"]) for value in graph["xvalues"]]
        types = {value["id_out"]: value["datatype"].removeprefix("xnn_datatype_") for value in values}
        for node in graph["xnodes"]:
            ids = [value for name, value in node["xnode_union"].items() if name.endswith("_id")]
            nodes.append((node["xnode_union_type"], [types[i] for i in ids if i in types]))
    return nodes, len(program.backend_delegate_data)


class Branches(torch.nn.Module):
    """A depthwise convolution with a ReLU6 and a grouped one, concatenated at different scales, then pooled."""

    def __init__(self, join=torch.cat):
        super().__init__()
        self.join = join
        self.stem, self.norm = torch.nn.Conv2d(1, 8, 1), torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        x = self.join([F.relu6(self.depthwise(x)), self.grouped(x)], 1)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


@TARGETS
def test_branches_agree(target, tmp_path):
    branches_agree(torch.cat, target, tmp_path)


@pytest.mark.parametrize("join", [torch.concat, torch.concatenate])
def test_xnnpack_takes_a_concatenation_by_any_name(join, tmp_path):
    branches_agree(join, "executorch", tmp_path)


def branches_agree(join, target, tmp_path):
    torch.manual_seed(0)
    model, x = fake_quantized(Branches(join)), images(100)
    path = written(model, target, tmp_path)
    ours, theirs = expected(model, x), logits(path, x)
    assert (ours.argmax(1) != theirs.argmax(1)).sum() <= 1
    assert np.abs(ours - theirs).mean() < 0.01 * np.abs(ours).mean()


@TARGETS
def test_a_small_net_runs_in_integers(target, files):
    assert convolutions_in_integers(files[target]) == 2


@TARGETS
def test_a_float_model_is_written_as_it_is(target, floating, tmp_path):
    x = images(5)
    path = written(floating, target, tmp_path)
    np.testing.assert_allclose(logits(path, x), expected(floating, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):  # the check for integers sees floats
        convolutions_in_integers(path)


def test_three_ways_to_store_a_litert_model(tmp_path):
    torch.manual_seed(0)
    model, x = lived_in(Residual(64)), images(200)
    ours, sizes, errors, flips = expected(model, x), {}, {}, {}
    for mode in (None, "float16", "dynamic"):
        path = export(model, EXAMPLE, tmp_path / f"{mode}.tflite", target="litert", mode=mode)
        theirs = logits(path, x)
        sizes[mode] = path.stat().st_size
        errors[mode] = np.abs(theirs - ours).max() / np.abs(ours).max()
        flips[mode] = (theirs.argmax(1) != ours.argmax(1)).sum()
        with open_runner(path) as runner:
            assert runner.inputs[0]["dtype"] == np.float32
    assert sizes["float16"] < 0.65 * sizes[None]
    assert sizes["dynamic"] < 0.4 * sizes[None]
    assert errors[None] < 1e-5 < errors["float16"] < 2e-3 < errors["dynamic"] < 0.05
    assert flips[None] == flips["float16"] == 0
    assert flips["dynamic"] <= 2


def test_the_last_layer_of_a_litert_file_is_stored_in_int8(tmp_path):
    """It computes in float, but its 8-bit weights are not stored so; where a layer was excluded all floats stay."""
    sizes = {}
    for exclude in ((), ("2",)):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 400))
        quantize_(net, example_input=torch.zeros(2, 64), exclude=exclude, weight_bits=8)
        calibrate_(net, [torch.randn(64, 64)])
        path = export(net, torch.zeros(1, 64), tmp_path / "model.tflite", target="litert")
        sizes[exclude] = path.stat().st_size
        x = torch.randn(100, 64)
        assert np.abs(logits(path, x) - expected(net, x)).max() < 1e-5
    assert sizes[()] < 0.5 * sizes["2",]


@pytest.mark.parametrize("target", QUICK)
def test_a_file_is_replaced_whole_in_silence_and_the_model_left_alone(target, model, files, tmp_path, capfd):
    path = tmp_path / files[target].name
    path.write_bytes(b"the old one")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch._dynamo", "root")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    model.train()
    try:
        written(model, target, tmp_path)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {p.suffix for p in tmp_path.iterdir()} == {SUFFIXES[target], *([".bin"] if target == "openvino" else [])}
    x = images(10)
    np.testing.assert_array_equal(logits(path, x), logits(files[target], x))
    assert capfd.readouterr() == ("", "")
    assert before == [(logger.level, list(logger.handlers)) for logger in loggers]


@TARGETS
def test_every_file_is_measured_alike(target, model, files):
    data = [(images(20), torch.arange(20) % 3)]
    theirs = measure(files[target], data, batch_sizes=(2,))
    with open_runner(model) as runner:
        ours = runner.count(((images(1),), {}))
    assert theirs["runtime"] == target
    assert theirs["macs"] == ours["macs"]
    assert theirs["parameters"] == sum(p.numel() for n, p in model.named_parameters() if "norm" not in n) + 8
    bytes_of = [files[target], *files[target].parent.glob("model.bin")][: 2 if target == "openvino" else 1]
    assert theirs["bytes"] == sum(path.stat().st_size for path in bytes_of)
    assert theirs["latency_ms"]["batch_2"]["median"] > 0


def test_processes_can_be_forked_after_an_export(files):
    data = torch.utils.data.TensorDataset(images(4))
    assert len(list(torch.utils.data.DataLoader(data, num_workers=1, multiprocessing_context="fork"))) == 4


class TwoInputs(torch.nn.Module):
    """Tells its inputs apart."""

    def __init__(self):
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)

    def forward(self, *, wide, narrow):
        return {"logits": self.left(wide) - self.right(narrow)}


@TARGETS
def test_keywords_reach_the_inputs_that_they_name(target, tmp_path):
    call = {"wide": torch.randn(3, 4), "narrow": torch.randn(3, 2)}
    net = TwoInputs()
    path = export(net, call, tmp_path / f"m{SUFFIXES[target]}", target=target)
    with open_runner(path) as runner:
        ours = net(**call)["logits"].detach().numpy()
        np.testing.assert_allclose(runner.run(runner.feed(((), call))), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "module", "package"),
    [
        ("openvino", "openvino", "openvino"),
        ("litert", "litert_torch", "litert-torch"),
        ("executorch", "executorch.exir", "executorch"),
    ],
)
def test_a_target_that_is_not_installed_says_how_to_get_it(target, module, package, floating, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        written(floating, target, tmp_path)
    assert str(caught.value) == (f"target {target!r} needs {package}; install it with: pip install 'lighten[{target}]'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("openvino", "openvino"),
        ("litert", "ai_edge_litert.interpreter"),
        ("executorch", "executorch.runtime"),
    ],
)
def test_a_runtime_that_is_not_installed_says_how_to_get_it(target, module, files, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'lighten\[{target}\]'"), open_runner(files[target]):
        pass


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("m.tflite", {"target": "tflite"}, "target='tflite': did you mean 'litert'"),
        ("m.onnx", {"target": "litert"}, "target 'litert' writes files that end in .tflite"),
        ("m.pte", {"target": "executorch", "opset": 20}, "opset=20: only target 'onnx' has operator sets"),
        ("m.onnx", {"mode": "dynamic"}, "mode='dynamic': only target 'litert' has modes"),
        ("m.tflite", {"target": "litert", "mode": "half"}, "mode='half': Choices: dynamic, float16"),
    ],
)
def test_bad_requests_give_one_line(name, settings, says, floating, tmp_path):
    with pytest.raises(UserError, match=says) as caught:
        export(floating, EXAMPLE, tmp_path / name, **settings)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_modes_are_for_float_models(model, tmp_path):
    with pytest.raises(UserError, match="modes are for a float model"):
        written(model, "litert", tmp_path, mode="dynamic")


@TARGETS
def test_an_operator_that_a_target_lacks_is_told_in_one_line(target, tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x @ x.transpose(1, 2))

    path = tmp_path / f"m{SUFFIXES[target]}"
    with pytest.raises(UserError, match=r"target '\w+' cannot take Odd \(.+\); choose another target") as caught:
        export(Odd(), torch.randn(2, 4, 4), path, target=target)
    assert "\n" not in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("target", ["onnx", *QUICK])
def test_texts_of_any_length_run_in_every_runtime(target, tmp_path):
    """ONNX and OpenVINO take them as they are; the others' one length is filled up."""
    torch.manual_seed(0)
    config = {"model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 64}
    text = build_model("transformers", num_classes=5, input_shape=(16,), config=config).eval()
    torch.nn.init.normal_(text.classifier.weight)
    ids = torch.randint(1, 100, (6, 11), generator=torch.Generator().manual_seed(1))
    batch = {
        "input_ids": ids,
        "attention_mask": (torch.arange(11) < torch.tensor([[11], [4], [9], [1], [7], [11]])).long(),
    }
    example = {name: torch.ones(2, 16, dtype=torch.int64) for name in batch}
    calibrate_(quantize_(text, example_input=example, weight_bits=7), [batch])
    path = export(text, example, tmp_path / f"text{({'onnx': '.onnx'} | SUFFIXES)[target]}", target=target)
    with open_runner(path) as runner:
        found = runner.run(runner.feed(((), batch)))
    with torch.no_grad():
        reference = text(**batch).logits.numpy()
    np.testing.assert_allclose(found, reference, atol=0.05 * reference.std())


@contextlib.contextmanager
def small_files(most):
    """Let no file grow beyond ``most`` bytes in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("target", QUICK)
def test_a_disk_that_refuses_is_told_in_one_line_and_leaves_the_old_files(target, tmp_path):
    """At the first bytes and at the last; OpenVINO itself says nothing of the reason."""
    tiny = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    path, onnx = written(tiny, target, tmp_path), export(tiny, EXAMPLE, tmp_path / "model.onnx")

    def again():
        return write_openvino(onnx, path, {}) if target == "openvino" else written(tiny, target, tmp_path)

    again()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    largest = max(len(content) for name, content in before.items() if name != onnx.name)
    for most in (64, largest - 1):
        with small_files(most), pytest.raises(DiskError) as caught:
            again()
        assert str(caught.value).startswith(f"{path} cannot be written (File too large); ")
        assert "\n" not in str(caught.value)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_openvino_pair_is_flushed_before_the_old_one_goes(floating, tmp_path, monkeypatch):
    written(floating, "openvino", tmp_path)
    onnx = export(floating, EXAMPLE, tmp_path / "model.onnx")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def refuse(descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskError, match=r"model\.xml cannot be written \(Disk quota exceeded\)"):
        write_openvino(onnx, tmp_path / "model.xml", {})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
