"""Recipes as nobody should write them: the shipped ones, changed at random, and words of a command line."""

from pathlib import Path

import yaml
from hypothesis import strategies as st

SHIPPED = Path(__file__).parents[1] / "recipes"
RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(SHIPPED.glob("*.yaml"))}


class Raw(str):
    """Text that stands in the YAML file as it is."""


NUMBERS = ["1e999", "-1e999", ".nan", ".inf", "-.inf", "-0.0", "0", "-1", "1e-320", "0x1F", "0b", "1_0", "1:60", "08"]
HUGE = ["9" * 25, "9" * 400, "9" * 5000, "-" + "9" * 30, "1e308", "4294967296", "18446744073709551616", "1000000000"]
TEXTS = [
    "", " ", "null", "~", "yes", "on", "true", "2020-01-01", "'", '"', "a: b", "- a", "%", "@", "`", "*a", "&a b", "!x y",
    "!!python/object/apply:os.system [touch marker]", "!!binary aGk=", "!!set {a}", "[", "{", "[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]",
    "${seed}", "${oc.env:HOME}", "${${id}:HOME}", "${", "$", "${runs}", "../../x", "/etc/passwd", "a\\0b", '"a\\0b"',
    '"\\e[31m"', '"\\ud800"', '"\\u2028"', "x" * 2000, "fpgn", "resnet20", "cnn", "table", "transformers", "auto",
]  # fmt: skip
KEYS = ["_target_", "_partial_", "defaults", "hydra", "name", "1", "null", "true", ".nan", "a.b", "", "é", "<<", "? [a]",
        "path", "config", "width", "widths", "from", "to", "layers", "tokenizer", "cache", "seed", "k" * 200]  # fmt: skip

def places(tree, prefix=()):
    """Return the path of every key of a tree."""
    found = []
    for key, value in tree.items():
        found += [(*prefix, key), *(places(value, (*prefix, key)) if isinstance(value, dict) else [])]
    return found


CHOICES = [
    None, "cnn", "mlp", "resnet20", "bert_rows", "transformers", "from_teacher", "fashion_mnist", "cifar10", "table", "glue",
    "wordnet_glosses", "auto", "lsq", "mse", "static", "dynamic", "float16", "bfloat16", "ddp", "fsdp", "wandb", "sgd",
    "adamw", "global", "latency", "sensitivity", "macs", "fpgm", "dkd", "hint", "soft_labels", "uniform", "changed",
]  # fmt: skip
ALL_KEYS = sorted({key for tree in RECIPES.values() for path in places(tree) for key in path} | {
    "validation", "path", "config", "cache_top_k", "loss_options", "losses", "layers", "teacher_weights", "align",
    "max_drop", "mode", "ranges", "scope", "target", "views", "augment", "source", "folder", "hidden", "depth", "strategy",
    "devices", "num_nodes", "precision", "limit_train_batches", "student_fit", "student_checkpoint", "teacher_checkpoint",
})  # fmt: skip

values = st.deferred(
    lambda: st.one_of(
        st.sampled_from(NUMBERS + HUGE + TEXTS).map(Raw),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
        st.recursive(
            st.one_of(st.none(), st.integers(-3, 200), st.floats(-1, 2), st.text(max_size=4)),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=8,
        ),
    )
)


def written(value, level=0):
    """Return a tree as flow-style YAML, ``Raw`` as it stands."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k if isinstance(k, Raw) else written(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return value if value.isidentifier() else "'" + value.replace("'", "''") + "'"
    return yaml.safe_dump(value).partition("\n")[0]


def copied(tree):
    return {key: copied(value) if isinstance(value, dict) else value for key, value in tree.items()}


def near(draw, value):
    """Draw a value of the same type, or the word that it is made of, nearly."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return draw(st.sampled_from([0, 1, 2, -1, 3, 0.5, 1.0, 1e-9, 1e9, value * 2, value / 2, -value, 10**6, 2**40]))
    if isinstance(value, list):
        return [*value, *value[:1], draw(st.sampled_from([0, 1, 7, "onnx", "litert", "*", "a", None, [], {}, 1.5]))]
    if isinstance(value, dict):
        return {**value, draw(st.sampled_from(ALL_KEYS)): draw(st.sampled_from([0, 1, 0.5, "x", None, [], {}, True]))}
    return draw(st.sampled_from(CHOICES))


@st.composite
def files(draw):
    """Draw a recipe's file: a shipped one with one to three changes."""
    tree = copied(RECIPES[draw(st.sampled_from(sorted(RECIPES)))])
    after = ""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        path = draw(st.sampled_from(places(tree) or [("seed",)]))
        at = tree
        for key in path[:-1]:
            at = at[key] if isinstance(at.get(key), dict) else at
        key = path[-1]
        match draw(st.sampled_from(["near", "near", "near", "value", "value", "drop", "rename", "add", "double", "nest", "wrap"])):
            case "value":
                at[key] = draw(values)
            case "near":
                at[key] = near(draw, at.get(key))
            case "drop":
                at.pop(key, None)
            case "rename":
                at[Raw(draw(st.sampled_from(KEYS)))] = at.pop(key, None)
            case "add":
                at[Raw(draw(st.sampled_from(KEYS)) or "''")] = draw(values)
            case "double":
                after += f"{path[0]}: {written(draw(values))}\n"
            case "nest":
                levels = draw(st.sampled_from([1, 5, 30, 400]))
                at[key] = Raw("{a: " * levels + written(at.get(key)) + "}" * levels)
            case "wrap":
                at[key] = [at.get(key)]
    text = "".join(f"{k if isinstance(k, Raw) else k}: {written(v)}\n" for k, v in tree.items()) + after
    return text if draw(st.integers(0, 19)) else text[: draw(st.integers(0, len(text)))]


@st.composite
def words(draw):
    """Draw a word of the command line."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text(max_size=20))
    path = ".".join(draw(st.sampled_from(places(RECIPES[draw(st.sampled_from(sorted(RECIPES)))]))))
    key = draw(st.sampled_from([path] * 6 + KEYS + [f"{path}.x", f"+{path}", f"++{path}", f"~{path}", f"{path}@x", path.replace(".", "/")]))
    value = draw(values)
    return f"{key}={value if isinstance(value, str) else written(value)}"
