"""Recipes as nobody should write them: the shipped ones, changed at random, and words of a command line."""

from pathlib import Path

import yaml
from hypothesis import strategies as st

SHIPPED = Path(__file__).parents[1] / "recipes"
RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(SHIPPED.glob("*.yaml"))}


class Raw(str):
    """Text that stands in the file as it is."""


def places(tree, prefix=()):
    """Return the path of every key of a tree."""
    found = []
    for key, value in tree.items():
        found += [(*prefix, key), *(places(value, (*prefix, key)) if isinstance(value, dict) else [])]
    return found


def written(value):
    """Return a tree as YAML in one line, ``Raw`` as it stands."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return value if value.isidentifier() else "'" + value.replace("'", "''") + "'"
    return yaml.safe_dump(value).partition("\n")[0]


def listed(text):
    return text.split()


NUMBERS = listed("""1e999 -1e999 .nan .inf -.inf -0.0 0 -1 1e-320 0x1F 0b 1_0 1:60 08 1e308 4294967296
18446744073709551616 1000000000""")
LONG = ["9" * 25, "9" * 400, "9" * 5000, "0x" + "f" * 5000, "x" * 2000, "[" * 20 + "]" * 20]
TEXTS = listed(r"""null ~ yes on true 2020-01-01 ' " % @ ` *a !x [ { | > - ? # & ${seed} ${oc.env:HOME} ${${id}:HOME} ${
$ ${runs} ../../x /etc/passwd a\0b "a\0b" "\e[31m" "\ud800" "\u2028" !!binary !!set <<""")
SPACED = ["", " ", "a: b", "&a b", "!!python/object/apply:os.system [touch marker]", "{a: 1", "'a\n\n b'"]
CHOICES = listed("""null cnn mlp resnet20 bert_rows transformers from_teacher fashion_mnist cifar10 table glue auto lsq
wordnet_glosses mse static dynamic float16 bfloat16 ddp fsdp wandb sgd adamw global latency sensitivity macs fpgm dkd
hint soft_labels uniform changed onnx litert minilm""")
KEYS = sorted({key for tree in RECIPES.values() for path in places(tree) for key in path}) + listed(
    """validation path config cache_top_k loss_options losses layers teacher_weights align max_drop mode ranges scope
    target views augment source folder hidden depth strategy devices num_nodes precision limit_train_batches
    student_fit student_checkpoint teacher_checkpoint id runs resume from to"""
)
ODD_KEYS = [
    *listed("_target_ _partial_ defaults hydra name 1 null true .nan a.b é << a/b a@b"),
    "''",
    "? [a]",
    "k" * 200,
]

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
trees = st.recursive(
    st.one_of(st.none(), st.integers(-3, 200), st.floats(-1, 2), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
values = st.one_of(st.sampled_from([*NUMBERS, *LONG, *TEXTS, *SPACED, *CHOICES]).map(Raw), plain, trees)


def near(draw, value):
    """Draw a value of the same type, most of them of the same sense."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return draw(st.sampled_from([0, 1, 2, -1, 3, 0.5, 1.0, 1e-9, 1e9, value * 2, value / 2, -value, 10**6, 2**40]))
    if isinstance(value, list):
        return [*value, *value[:1], draw(st.sampled_from([0, 1, 7, "onnx", "litert", "*", "a", None, [], {}, 1.5]))]
    if isinstance(value, dict):
        return {**value, draw(st.sampled_from(KEYS)): draw(st.sampled_from([0, 1, 0.5, "x", None, [], {}, True]))}
    return Raw(draw(st.sampled_from(CHOICES)))


def change_(draw, tree):
    """Change one place of a tree; return a line to be added to the file."""
    path = draw(st.sampled_from(places(tree) or [("seed",)]))
    at = tree
    for key in path[:-1]:
        at = at[key]
    key = path[-1]
    ways = ["near", "near", "near", "value", "value", "drop", "rename", "odd", "add", "double", "nest", "wrap"]
    match draw(st.sampled_from(ways)):
        case "near":
            at[key] = near(draw, at.get(key))
        case "value":
            at[key] = draw(values)
        case "drop":
            at.pop(key, None)
        case "rename":
            at[draw(st.sampled_from(KEYS))] = at.pop(key, None)
        case "odd":
            at[Raw(draw(st.sampled_from(ODD_KEYS)))] = at.pop(key, None)
        case "add":
            at[draw(st.sampled_from(KEYS))] = draw(values)
        case "double":
            return f"{path[0]}: {written(draw(values))}\n"
        case "nest":
            levels = draw(st.sampled_from([1, 5, 30, 400]))
            at[key] = Raw("{a: " * levels + written(at.get(key)) + "}" * levels)
        case "wrap":
            at[key] = [at.get(key)]
    return ""


@st.composite
def files(draw):
    """Draw a recipe's file: a shipped one with one to three changes, now and then cut short."""
    tree = _copied(RECIPES[draw(st.sampled_from(sorted(RECIPES)))])
    more = "".join([change_(draw, tree) for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3])))])
    text = "".join(f"{written(key)}: {written(value)}\n" for key, value in tree.items()) + more
    return text if draw(st.integers(0, 19)) else text[: draw(st.integers(0, len(text)))]


@st.composite
def words(draw):
    """Draw a word of the command line."""
    if not draw(st.integers(0, 9)):
        return draw(st.text(max_size=20))
    path = ".".join(draw(st.sampled_from(places(RECIPES[draw(st.sampled_from(sorted(RECIPES)))]))))
    odd = [*ODD_KEYS, f"{path}.x", f"+{path}", f"++{path}", f"~{path}", f"{path}@x", path.replace(".", "/")]
    key = path if draw(st.integers(0, 3)) else draw(st.sampled_from(odd))
    value = draw(values)
    return f"{key}={value if isinstance(value, str) else written(value)}"


def _copied(tree):
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in tree.items()}
