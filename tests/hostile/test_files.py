"""Files that lie, want to run something, or lead elsewhere: nothing runs, and each is told in one line.

Each case plants its file and returns what opens it: words of the command line, or a call.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import warnings
from functools import partial

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from finished_run import make_plan, make_scores, write_run

import lighten
from lighten.data import build_data
from lighten.delivery.folders.student import shrink_run
from lighten.models import build_model
from lighten.training.checkpoint import AtomicCheckpointIO, manifest_of, sealed, verify
from lighten.utils.compression import record_of

CASES = {}
HARMLESS = set()
"""Those that are taken as what they are, without what they wanted."""


SAYS = {
    "checkpoint: pickle": "it cannot be read safely",
    "checkpoint: URL: http": "is a URL",
    "checkpoint: of a run that goes on: nothing": "does not fit this run",
    "data set: files elsewhere": "names a file outside of its folder",
    "model config: weights elsewhere": "its options name others",
    "model folder: URL": "is a URL",
    "onnx: data elsewhere: above": "escapes model directory",
    "transformers: code from the hub": "names code",
}
"""What some must be told for, as they could be refused for another reason."""


def hostile(name, *, harmless=False, **options):
    """Keep a planting function as a case; ``options`` are its further arguments."""

    def keep(plant):
        assert name not in CASES
        CASES[name] = partial(plant, **options)
        if harmless:
            HARMLESS.add(name)
        return plant

    return keep


def each(prefix, contents, *, harmless=()):
    """Keep a planting function as one case for each entry, which it gets as its second argument."""

    def keep(plant):
        for name, content in contents.items():
            hostile(f"{prefix}: {name}", harmless=name in harmless, content=content)(plant)
        return plant

    return keep


def torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def committed(path, content):
    """Write a checkpoint with a manifest that fits: who can plant one can plant the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    manifest = {
        "schema": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "step": 1,
        "epoch": 0,
    }
    manifest_of(path).write_text(sealed(manifest))
    assert verify(path) is None
    return path


# --- checkpoints -----------------------------------------------------------------------------------------------------

PICKLES = {
    "pickle": lambda home: home.pickled,
    "zip": lambda home: torch_bytes({"state_dict": home.bomb}),
    "key": lambda home: torch_bytes({"state_dict": {}, "callbacks": {"x": [home.bomb]}}),
    "nothing": lambda home: b"",
    "text": lambda home: b"state_dict",
}


@each("checkpoint", PICKLES)
def load_checkpoint(home, content):
    return partial(AtomicCheckpointIO().load_checkpoint, committed(home.folder / "x.ckpt", content(home)))


@hostile("checkpoint: symlink")
def linked_checkpoint(home):
    target = committed(home.marker.with_name("elsewhere.ckpt"), torch_bytes({"a": home.bomb}))
    (home.folder / "x.ckpt").symlink_to(target)
    manifest_of(home.folder / "x.ckpt").symlink_to(manifest_of(target))
    return partial(AtomicCheckpointIO().load_checkpoint, home.folder / "x.ckpt")


@each("checkpoint: URL", {"http": "https://example.com/x.ckpt", "file": "file:///tmp/x.ckpt", "s3": "s3://x/y.ckpt"})
def checkpoint_url(home, content):
    return partial(AtomicCheckpointIO().load_checkpoint, content)


@hostile("checkpoint: unsafe by request")
def unsafe_checkpoint(home):
    path = committed(home.folder / "x.ckpt", torch_bytes({"a": home.bomb}))
    return partial(AtomicCheckpointIO().load_checkpoint, path, weights_only=False)


BARE = {"state_dict": {}, "epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.0", "callbacks": {}}
RESUMED = {
    "pickle": lambda home: {"state_dict": home.bomb},
    "nothing": lambda home: {},
    "list": lambda home: [1],
    "no weights": lambda home: BARE | {"optimizer_states": [], "lr_schedulers": [], "loops": {}},
    "weights of no kind": lambda home: BARE | {"state_dict": [1]},
    "version of no kind": lambda home: BARE | {"pytorch-lightning_version": 5},
}


@each("checkpoint: of a run that goes on", RESUMED)
def resumed_checkpoint(home, content):
    shutil.copy(SMOKE, home.recipes)
    committed(home.folder / "runs" / "smoke" / "a" / "checkpoints" / "last.ckpt", torch_bytes(content(home)))
    small = ["teacher=null", "teacher_options={widths: null}", "teacher_fit.max_epochs=0", "trainer.accelerator=cpu"]
    return ["recipe=smoke", "id=a", "logger=none", "trainer.enable_progress_bar=false", *small]


@hostile("checkpoint: URL through a Trainer")
def url_through_a_trainer(home):
    module = lighten.DistillationModule(torch.nn.Linear(2, 2), None, soft_weight=0.0)
    trainer = L.Trainer(
        plugins=[AtomicCheckpointIO()], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=home.folder, max_epochs=1,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([(torch.zeros(2), 0)])
    return partial(trainer.fit, module, loader, loader, ckpt_path="https://example.com/x.ckpt")


@hostile("checkpoint: of a run that is shrunk")
def run_checkpoint(home):
    run = home.folder / "runs" / "x" / "a"
    committed(run / "checkpoints" / "last.ckpt", torch_bytes({"state_dict": {}, "callbacks": home.bomb}))
    config = {"schema": 1, "model": {"name": "mlp", "num_classes": 3, "input_shape": [4], "options": {}}}
    (run / "fit.json").write_text(json.dumps({"schema": 1, "config": config, "quantization": None}))
    return partial(shrink_run, run)


# --- model folders ---------------------------------------------------------------------------------------------------


def model_folder(home, **files):
    """Save a small model and put other files in place of its own; ``None`` takes one away."""
    folder = home.folder / "model"
    lighten.save(build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[4]), folder)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def safetensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WEIGHTS = {
    "pickle": lambda home: home.pickled,
    "zip": lambda home: torch_bytes({"a": home.bomb}),
    "endless header": lambda home: struct.pack("<Q", 2**63) + b"{}",
    "huge tensor": lambda home: safetensors({"w": entry([2**40, 2**20], 0, 8)}, b"x" * 8),
    "beyond the file": lambda home: safetensors({"w": entry([2**20], 0, 2**22)}, b"x" * 8),
    "backwards": lambda home: safetensors({"w": entry([-1], 8, 0)}, b"x" * 8),
    "two in one place": lambda home: safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"x" * 8),
    "deep header": lambda home: safetensors(b"[" * 100_000),
    "other tensors": lambda home: safetensors({"w": entry([2], 0, 8)}, b"x" * 8),
}


@each("weights", WEIGHTS)
def weights(home, content):
    return partial(lighten.load, model_folder(home, model__safetensors=content(home)))


@hostile("weights: pickle beside nothing")
def only_bin(home):
    return partial(lighten.load, model_folder(home, model__safetensors=None, pytorch_model__bin=home.pickled))


@hostile("weights: symlink")
def linked_weights(home):
    folder = model_folder(home, model__safetensors=None)
    (folder / "model.safetensors").symlink_to(home.outside)
    return partial(lighten.load, folder)


@each("weights: no file", {"pipe": os.mkfifo, "folder": os.mkdir})
def no_weights(home, content):
    folder = model_folder(home, model__safetensors=None)
    content(folder / "model.safetensors")
    return partial(lighten.load, folder)


CONFIGS = {
    "name out of the registry": {"name": "os.system"},
    "name out of the folder": {"name": "../../x"},
    "name of no kind": {"name": ["cnn"]},
    "target": {"options": {"_target_": "os.system"}},
    "code elsewhere": {"name": "transformers", "options": {"config": {"model_type": "x", "auto_map": {"a": "x.Y"}}}},
    "blocks without end": {"options": {"widths": [4], "depth": 10**9}},
    "classes without end": {"num_classes": 10**12},
    "negative shape": {"input_shape": [-1, 2, 3]},
    "no shape": {"input_shape": []},
}  # fmt: skip


@each("model config", CONFIGS)
def model_config(home, content):
    folder = model_folder(home)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model": config["model"] | content}))
    return partial(lighten.load, folder)


TEXTS = {
    "deep": "[" * 100_000, "long number": '{"model": ' + "9" * 5000 + "}", "no model": "{}", "list": "[]", "NUL": "\0",
    "model of no kind": '{"model": NaN}',
}  # fmt: skip


@each("model config", TEXTS)
def model_config_text(home, content):
    return partial(lighten.load, model_folder(home, config__json=content))


COMPRESSIONS = {"no plan": {"plan": {"x": 1}}, "no settings": {"quantization": {"x": 1}}, "list": {"quantization": [1]}}


@each("compression", COMPRESSIONS)
def compression(home, content):
    return partial(lighten.load, model_folder(home, compression__json=json.dumps(content)))


@each(
    "model folder", {"URL": "https://example.com/m", "NUL": "a\0b", "long name": "x" * 900, "outside": "../outside.txt"}
)
def model_path(home, content):
    return partial(lighten.load, content)


@each("folder in a recipe", {"teacher_checkpoint": "teacher_checkpoint", "student_checkpoint": "student_checkpoint"})
def folder_in_a_recipe(home, content):
    shutil.copy(SMOKE, home.recipes)
    folder = model_folder(home, model__safetensors=home.pickled)
    return ["recipe=smoke", "id=a", "logger=none", f"{content}={folder}"]


SMOKE = os.path.join(os.path.dirname(__file__), "..", "..", "recipes", "smoke.yaml")


# --- folders of transformers -----------------------------------------------------------------------------------------

BERT = {
    "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "vocab_size": 100, "max_position_embeddings": 32,
}  # fmt: skip
AUTO_MAP = {
    "AutoConfig": "evil.E",
    "AutoModelForSequenceClassification": "evil.E",
    "AutoTokenizer": ["evil.E", "evil.E"],
}
PRETRAINED = {
    "pickled weights": lambda home: {"pytorch_model.bin": home.pickled},
    "zipped weights": lambda home: {"pytorch_model.bin": torch_bytes({"a": home.bomb})},
    "pickle as safetensors": lambda home: {"model.safetensors": home.pickled},
    "pickled shards": lambda home: {
        "pytorch_model.bin.index.json": b'{"metadata": {}, "weight_map": {"a": "x.bin"}}',
        "x.bin": home.pickled,
    },
    "shards elsewhere": lambda home: {
        "model.safetensors.index.json": b'{"metadata": {}, "weight_map": {"a": "../../outside.txt"}}'
    },
    "other frameworks": lambda home: {"tf_model.h5": home.pickled, "flax_model.msgpack": home.pickled},
    "own code": lambda home: {"config": {"model_type": "evil", "auto_map": AUTO_MAP}, "evil.py": home.python.encode()},
    "own code for a known type": lambda home: {"config": {"auto_map": AUTO_MAP}, "evil.py": home.python.encode()},
    "code from the hub": lambda home: {"config": {"attn_implementation": "evil/kernel"}},
    "quantized": lambda home: {"config": {"quantization_config": {"quant_method": "torchao"}}},
}


@hostile("model config: weights elsewhere")
def weights_elsewhere(home):
    model = build_model("transformers", num_classes=2, input_shape=(16,), config=BERT)
    elsewhere = str(home.marker.with_name("elsewhere"))
    model.save_pretrained(elsewhere)
    record_of(model).spec["options"] = {"path": elsewhere}
    return partial(lighten.load, lighten.save(model, home.folder / "model"))


@each("transformers", PRETRAINED)
def pretrained(home, content):
    folder = home.folder / "model"
    folder.mkdir()
    files = content(home)
    (folder / "config.json").write_text(json.dumps(BERT | files.pop("config", {})))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return partial(build_model, "transformers", num_classes=2, input_shape=(16,), path=str(folder))


OPTIONS = {
    "code from the hub": {"config": BERT | {"attn_implementation": "evil/kernel"}},
    "code for a part": {"config": BERT | {"attn_implementation": {"": "evil/kernel"}}},
    "type by path": {"config": {"model_type": "../../x"}},
    "URL": {"path": "https://example.com/model"},
    "out of the folder": {"path": "../../etc"},
    "width without end": {"config": BERT | {"hidden_size": 2**40}},
}


@each("transformers option", OPTIONS)
def transformers_option(home, content):
    return partial(build_model, "transformers", num_classes=2, input_shape=(16,), **content)


# --- data ------------------------------------------------------------------------------------------------------------

CSV = "text,label\n" + "".join(f"hello world number {i},{i % 2}\n" for i in range(40))


def read(name, **options):
    data = build_data(name, batch_size=8, validation=2, **options)
    data.prepare_data()
    data.setup("fit")


def read_table(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # datasets' own about deprecated formats
        read("table", path=str(path), max_length=16, **options)


TABLES = {
    "pickle.csv": lambda home: home.pickled,
    "NUL.csv": lambda home: b"\0" * 1000,
    "ragged.csv": lambda home: b"text,label\na,b,c\n",
    "no text.csv": lambda home: b"text,label\n\xff\xfe,1\n",
    "pickle.parquet": lambda home: home.pickled,
    "footer.parquet": lambda home: b"PAR1" + b"\xff" * 100 + struct.pack("<I", 2**31) + b"PAR1",
    "deep.json": lambda home: b"[" * 200_000,
    "deeper.jsonl": lambda home: b'{"a":' * 200_000,
    "pickle.pkl": lambda home: home.pickled,
    "pickle.npy": lambda home: b"\x93NUMPY" + home.pickled,
}


@each("table", TABLES)
def table(home, content):
    name = next(name for name, value in TABLES.items() if value is content)
    path = home.folder / name
    path.write_bytes(content(home))
    return partial(read_table, path)


@hostile("table: pickled type", harmless=True)
def pickled_type(home):
    plain = pa.table({"text": [f"text {i}" for i in range(40)], "label": [0, 1] * 20})
    field = plain.schema.field(0).with_metadata(
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": home.pickled}
    )
    pq.write_table(plain.cast(pa.schema([field, plain.schema.field(1)])), home.folder / "x.parquet")
    return partial(read_table, home.folder / "x.parquet")


@each("table: no file", {"pipe": os.mkfifo, "folder": os.mkdir})
def no_table(home, content):
    content(home.folder / "x.csv")
    return partial(read_table, home.folder / "x.csv")


@each("table: path", {"URL": "https://example.com/x.csv", "NUL": "a\0.csv", "long": "x" * 900 + ".csv"})
def table_path(home, content):
    return partial(read_table, content)


DATASETS = {
    "script": lambda home: {"set.py": home.python.encode()},
    "pickles": lambda home: {"train.pkl": home.pickled},
    "arrays of objects": lambda home: {"train.npy": b"\x93NUMPY" + home.pickled},
    "tags in its page": lambda home: {
        "README.md": b"---\nconfigs:\n- !!python/object/apply:os.system ['touch marker']\n---\n",
        "train.csv": CSV.encode(),
    },
    "files elsewhere": lambda home: {
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: ../../outside.txt\n---\n"
    },
    "tar of pickles": lambda home: {"train.tar": tar({"a.pkl": home.pickled, "a.pyd": home.pickled})},
    "tar of weights": lambda home: {"train.tar": tar({"a.pth": torch_bytes(home.bomb)})},
    "tar of arrays": lambda home: {"train.tar": tar({"a.npy": npy(home), "a.npz": home.pickled})},
    "tar that leads elsewhere": lambda home: {"train.tar": tar({"../../marker": b"x"})},
}


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npy(home):
    buffer = io.BytesIO()
    np.save(buffer, np.array([home.bomb], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@each("data set", DATASETS)
def data_set(home, content):
    folder = home.folder / "set"
    folder.mkdir()
    for name, data in content(home).items():
        (folder / name).write_bytes(data)
    return partial(read_table, folder)


@each("data set by name", {"pandas": "pandas", "module": "os"})
def data_set_by_name(home, content):
    (home.folder / "train.pkl").write_bytes(home.pickled)
    return partial(read_table, content)


IDX = {
    "train-images-idx3-ubyte": lambda home: home.pickled,
    "train-images-idx3-ubyte.gz": lambda home: gzip.compress(idx(3) + bytes(1 << 26)),
    "t10k-images-idx3-ubyte.gz": lambda home: b"\x1f\x8b" + home.pickled,
    "t10k-images-idx3-ubyte": lambda home: bytes([0, 0, 8, 3]) + b"\xff" * 12,
    "train-labels-idx1-ubyte": lambda home: bytes([0, 0, 8, 1]) + struct.pack(">I", 20) + b"\xff" * 20,
    "t10k-labels-idx1-ubyte": lambda home: bytes([0, 0, 8, 1]) + struct.pack(">I", 10) + bytes(10),
}


def idx(dimensions):
    sizes = [20, 28, 28][:dimensions]
    return bytes([0, 0, 8, dimensions]) + struct.pack(f">{dimensions}I", *sizes) + bytes(int(np.prod(sizes)))


@each("images", IDX)
def images(home, content):
    name = next(name for name, value in IDX.items() if value is content)
    for part in ("train", "t10k"):
        for kind, dimensions in (("images", 3), ("labels", 1)):
            (home.folder / f"{part}-{kind}-idx{dimensions}-ubyte").write_bytes(idx(dimensions))
    (home.folder / name.removesuffix(".gz")).unlink()
    (home.folder / name).write_bytes(content(home))
    return partial(read, "fashion_mnist", source="idx", folder=str(home.folder))


TOKENIZERS = {
    "own code": lambda home: {
        "tokenizer_config.json": json.dumps({"auto_map": AUTO_MAP, "tokenizer_class": "E"}).encode(),
        "config.json": json.dumps({"model_type": "evil", "auto_map": AUTO_MAP}).encode(),
        "evil.py": home.python.encode(),
    },
    "class by path": lambda home: {"tokenizer_config.json": b'{"tokenizer_class": "os.system"}'},
    "deep": lambda home: {"tokenizer.json": b"[" * 100_000},
    "words elsewhere": lambda home: {
        "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer", "vocab_file": "../outside.txt"}'
    },
}


@each("tokenizer", TOKENIZERS, harmless={"words elsewhere"})
def tokenizer(home, content):
    folder = home.folder / "words"
    folder.mkdir()
    for name, data in content(home).items():
        (folder / name).write_bytes(data)
    (home.folder / "x.csv").write_text(CSV)
    return partial(read_table, home.folder / "x.csv", tokenizer=str(folder))


# --- run folders -----------------------------------------------------------------------------------------------------

SCRIPT = "<script>open('marker')</script>\x1b[2J\n# x"
RUNS = {
    "scores of no kind": ("scores.json", {"models": 3}),
    "scores of text": ("scores.json", {"comparison": {"retention": "x"}}),
    "no scores": ("scores.json", {"schema": 7}),
    "plan of no kind": ("plan.json", {"groups": 3}),
    "plan of another hash": ("plan.json", {"hash": 1e308}),
    "sensitivity of no kind": ("sensitivity.json", {"layers": [3]}),
    "compression of no kind": ("student/compression.json", {"layers": [{"name": 3}]}),
}


@each("run", RUNS)
def run_files(home, content):
    run = write_run(home.folder / "runs" / "x" / "a", quantized=True)
    name, change = content
    (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | change))
    return ["report", str(run)]


@each(
    "run",
    {"data by path": {"name": "../../x"}, "data of a stranger": {"name": "table", "options": {"path": "../x.pkl"}}},
)
def run_data(home, content):
    run = write_run(home.folder / "runs" / "x" / "a")
    config = json.loads((run / "student" / "config.json").read_text())
    (run / "student" / "config.json").write_text(json.dumps(config | {"data": content}))
    for name in ("student", "dense", "teacher"):
        (run / f"{name}.onnx").write_bytes(home.pickled)
    return ["measure", str(run)]


@hostile("run: numbers without end", harmless=True)
def run_history(home):
    run = write_run(home.folder / "runs" / "x" / "a")
    (run / "history.jsonl").write_text(
        '{"step": 1, "train/loss": 1e999}\n{"step": ' + "9" * 400 + "}\n" + "[" * 100_000
    )
    return ["report", str(run)]


@each(
    "run: measured file",
    {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite", "executorch": ".pte", "pt2": ".pt2"},
)
def measured_file(home, content):
    (home.folder / f"x{content}").write_bytes(home.pickled)
    data = [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))]
    return partial(lighten.measure, home.folder / f"x{content}", data)


@each("onnx: data elsewhere", {"above": "../outside.txt", "whole path": "/etc/passwd", "link": "link.bin"})
def external_data(home, content):
    import onnx
    from onnx import TensorProto, helper

    (home.folder / "link.bin").symlink_to(home.outside)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", content), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 2]) for name in ("input", "logits")]
    graph = helper.make_graph([helper.make_node("Add", ["input", "w"], ["logits"])], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (home.folder / "x.onnx").write_bytes(model.SerializeToString())
    assert onnx.load(home.folder / "x.onnx", load_external_data=False)
    return partial(lighten.measure, home.folder / "x.onnx", [(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))])


# --- and the tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file(home, answered, capsys, name):
    work = CASES[name](home)
    capsys.readouterr()  # what planting it has printed
    assert SAYS.get(name, "") in answered(work, harmless=name in HARMLESS)


def test_there_are_enough():
    assert len(CASES) >= 60


def test_the_payloads_would_leave_their_mark(home):
    """Else nothing above could fail."""
    import pickle

    pickle.loads(home.pickled)
    assert home.marker.exists()
    home.marker.rmdir()
    torch.load(io.BytesIO(torch_bytes({"a": home.bomb})), weights_only=False)
    assert home.marker.exists()


def test_names_that_are_html_stay_text(home, answered):
    """A class, a layer and a model may be called anything, in the report and in the model card."""
    run = write_run(home.folder / "runs" / "x" / "a", quantized=True)
    scores = make_scores()
    scores["recipe"] = SCRIPT
    scores["parts"]["names"] = [SCRIPT] * len(scores["parts"]["names"])
    scores["parts"] |= {"label": SCRIPT, "kind": SCRIPT}
    scores["task"] |= {"unit": SCRIPT, "name": SCRIPT}
    for meaning in (*scores["task"]["metrics"].values(), *scores["task"]["alike"].values()):
        meaning |= {"label": SCRIPT, "format": "amount"}
    points = {"target": SCRIPT, "true": [1.0, 2.0], "models": {r: [1.0, 2.5] for r in scores["models"]}}
    (run / "points.json").write_text(json.dumps(points))
    sample = {"sample": SCRIPT, "rank": SCRIPT, "score": 0.0, "input": SCRIPT, "truth": SCRIPT}
    marks = [{"box": [0.1, 0.1, 0.9, 0.9], "label": SCRIPT, "odds": 0.5}]
    marked = sample | {"size": [8, 8], "truth": marks} | dict.fromkeys(scores["models"], marks)
    samples = [sample | dict.fromkeys(scores["models"], SCRIPT), marked]
    pictures = {"classes": [SCRIPT], "samples": samples}
    (run / "pictures.json").write_text(json.dumps(pictures))
    scores["provenance"]["machine"]["processor"] = SCRIPT
    scores["provenance"]["data"]["licence"] = SCRIPT
    (run / "scores.json").write_text(
        json.dumps(scores | {"gate": json.loads((run / "scores.json").read_text())["gate"]})
    )
    config = json.loads((run / "student" / "config.json").read_text())
    config["classes"] = [SCRIPT] * 10
    config["model"]["name"] = SCRIPT
    config["training"] = {"recipe": SCRIPT}
    (run / "student" / "config.json").write_text(json.dumps(config))
    (run / "recipe.yaml").write_text(f"# {SCRIPT}")
    plan = make_plan()
    plan.settings["score"] = SCRIPT
    (run / "plan.json").write_text(json.dumps(json.loads(plan.to_json())))
    for step in ("report", "card"):
        assert not answered([step, str(run)], harmless=True).startswith("error")
    report, card = (run / "report.html").read_text(), (run / "student" / "README.md").read_text()
    assert "&lt;script&gt;" in report
    assert "&lt;script" in card
    assert "<script" not in report + card
    assert "\x1b" not in card
    assert "\n# x" not in card
