"""The int8 file: what it holds, and that onnxruntime computes with it what was trained."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from quantization_nets import Residual, lived_in

from lighten.delivery.export.targets import export_onnx
from lighten.delivery.runtimes.onnx_count import count_onnx
from lighten.errors import UserError
from lighten.quantization import calibrate_, convert, quantize_

EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(3)]
    return calibrate_(quantize_(lived_in(Residual(8)), example_input=torch.zeros(2, 1, 8, 8), weight_bits=7), batches)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return export_onnx(model, EXAMPLE, tmp_path_factory.mktemp("export") / "model.onnx")


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def test_weights_are_int8_and_every_operation_has_its_pair(path):
    graph = onnx.load(path).graph
    kinds = {i.name: i.data_type for i in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convolutions) == 3
    for node in convolutions:
        assert [made_by[name].op_type for name in node.input] == ["DequantizeLinear"] * 3
        assert kinds[made_by[node.input[1]].input[0]] == onnx.TensorProto.INT8
        assert kinds[made_by[node.input[2]].input[0]] == onnx.TensorProto.INT32
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert sum(1 for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT and np.prod(i.dims) > 8) == 0


def test_batch_is_dynamic_and_names_are_plain(path):
    graph = onnx.load(path).graph
    assert [i.name for i in graph.input] == ["input"]
    assert [o.name for o in graph.output] == ["logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for size in (1, 5):
        assert run(path, torch.randn(size, 1, 8, 8)).shape == (size, 3)


def test_onnxruntime_agrees_within_a_code(model, path):
    x = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model(x).numpy()
    ours = run(path, x)
    assert (ours.argmax(1) != expected.argmax(1)).mean() <= 0.006
    assert np.abs(ours - expected).max() < 0.1 * np.abs(expected).max()


def test_exported_program_is_bit_equal_in_torch(model):
    x = torch.randn(16, 1, 8, 8)
    program = torch.export.export(convert(model), (x,), strict=False)
    with torch.no_grad():
        assert torch.equal(program.module()(x), model(x))


def test_the_same_model_gives_the_same_bytes_and_stays_as_it_is(model, path, tmp_path):
    model.train()
    try:
        again = export_onnx(model, EXAMPLE, tmp_path / "again.onnx")
        assert model.training
    finally:
        model.eval()
    assert again.read_bytes() == path.read_bytes()
    assert b"/root" not in path.read_bytes()


def test_float_model_is_exported_as_it_is(tmp_path):
    floating = lived_in(Residual())
    path = export_onnx(floating, EXAMPLE, tmp_path / "float.onnx")
    x = torch.randn(4, 1, 8, 8)
    np.testing.assert_allclose(run(path, x), floating(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_bad_requests_give_one_line(model, tmp_path):
    with pytest.raises(UserError, match="opset=11: expected 18 to 23"):
        export_onnx(model, EXAMPLE, tmp_path / "x.onnx", opset=11)
    with pytest.raises(UserError, match="are off"):
        export_onnx(quantize_(Residual(), example_input=torch.zeros(2, 1, 8, 8)), EXAMPLE, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_the_operator_set_is_the_oldest_that_serves(tmp_path):
    """Older runtimes read an older one; attention is one operator from 23 on, and counts as its products do."""
    convolutional = export_onnx(lived_in(Residual()), EXAMPLE, tmp_path / "cnn.onnx")
    assert onnx.load(convolutional).opset_import[0].version == 18
    settings = transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32, num_labels=3)
    encoder = transformers.DistilBertForSequenceClassification(settings).eval()
    ids = torch.randint(50, (2, 7))
    words = {"input_ids": ids, "attention_mask": (ids > 9).long().index_fill(1, torch.tensor([0]), 1)}
    files = {opset: export_onnx(encoder, words, tmp_path / f"{opset}.onnx", opset=opset) for opset in (None, 18)}
    assert {opset: onnx.load(file).opset_import[0].version for opset, file in files.items()} == {None: 23, 18: 18}
    feed = {name: value.numpy() for name, value in words.items()}
    with torch.no_grad():
        expected = encoder(**words).logits.numpy()
    for file in files.values():
        found = onnxruntime.InferenceSession(str(file)).run(None, feed)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    one = {name: value[:1] for name, value in feed.items()}
    assert count_onnx(files[None], one)["macs"] == count_onnx(files[18], one)["macs"]
