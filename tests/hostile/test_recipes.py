"""Recipes and words of a command line that want more than to name things: none gets it, each is told in one line."""

import contextlib
import os
import sys
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutated_recipes import files, words

from lighten.errors import RecipeError
from lighten.recipe.compose import compose_all
from lighten.recipe.files import load_recipe

PLAIN = "student: resnet20\nstudent_options: {width: 4}\ncompress: {prune: {amount: 0.5}}\n"


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    """Composing must do: what gets as far as a run has not been refused."""

    def run(recipe, *given, **named):
        raise AssertionError(f"{recipe} was run")

    monkeypatch.setitem(sys.modules, "lighten.run.pipeline", SimpleNamespace(run=run))


FILES = {
    "python object": (PLAIN + "runs: !!python/object/apply:os.system ['touch ../marker']", "no tags are allowed"),
    "python name": (PLAIN + "runs: !!python/name:os.system", "no tags are allowed"),
    "own tag": (PLAIN + "runs: !Ref x", "no tags are allowed"),
    "bytes": (PLAIN + "teacher_checkpoint: !!binary aGk=", "no tags are allowed"),
    "target": (PLAIN + "data_options: {_target_: os.system}", "hold no code"),
    "empty target": (PLAIN + "data_options: {_target_: {}}", "hold no code"),
    "target in a list": (PLAIN + "teacher_checkpoint: [{_target_: os.system}]", "hold no code"),
    "resolver": (PLAIN + "runs: ${oc.env:MADE_UP_SECRET}", "resolvers are not allowed"),
    "resolver with a default": (PLAIN + "runs: ${oc.env:MADE_UP_SECRET,x}", "resolvers are not allowed"),
    "resolver whose name is a reference": (
        PLAIN + "id: oc.env\nruns: ${${id}:MADE_UP_SECRET}", "resolvers are not allowed",
    ),
    "resolver in two pieces": (PLAIN + "id: env\nruns: ${oc.${id}:MADE_UP_SECRET}", "resolvers are not allowed"),
    "resolver in a resolver": (PLAIN + "runs: ${oc.decode:${oc.env:MADE_UP_SECRET}}", "resolvers are not allowed"),
    "resolver in a key": (PLAIN + "data_options: {'${oc.env:MADE_UP_SECRET}': 1}", "resolvers are not allowed"),
    "resolver in a list": (PLAIN + "delivery: {targets: ['${oc.env:MADE_UP_SECRET}']}", "resolvers are not allowed"),
    "open bracket": (PLAIN + "runs: ${", "no viable alternative"),
    "reference to itself": (PLAIN + "runs: ${runs}", "Recursive interpolation"),
    "references in a ring": (PLAIN + "runs: ${id}\nid: ${runs}", "Recursive interpolation"),
    "reference that leads on": (PLAIN + "runs: ${..x}", "resolvers are not allowed"),
    "a billion laughs": (
        "data_options:\n  a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"  {n}: &{n} [{', '.join([f'*{b}'] * 9)}]\n" for b, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "aliases are not allowed",
    ),
    "alias of itself": (PLAIN + "data_options: &a {x: *a}", "aliases are not allowed"),
    "merge of itself": (PLAIN + "data_options: &a\n  <<: *a", "aliases are not allowed"),
    "deep lists": ("runs: " + "[" * 10_000 + "]" * 10_000, "more than 16 levels"),
    "deep keys": ("data_options: " + "{a: " * 5000 + "1" + "}" * 5000, "more than 16 levels"),
    "many keys": ("data_options: {" + ", ".join(f"k{i}: 1" for i in range(20_000)) + "}", "is larger than"),
    "long text": (PLAIN + "runs: " + "x" * 5000, "has 5,000 characters"),
    "long number": (PLAIN + "seed: " + "9" * 5000, "Exceeds the limit"),
    "long hexadecimal number": (PLAIN + "seed: 0x" + "f" * 5000, "fits 64 bits"),
    "number beyond 64 bits": (PLAIN + "seed: 18446744073709551616", "fits 64 bits"),
    "number beyond floats": (PLAIN + "optimizer: {lr: " + "9" * 400 + "}", "fits 64 bits"),
    "infinity": (PLAIN + "optimizer: {lr: 1e999}", "expected a finite number"),
    "not a number": (PLAIN + "data_options: {x: .nan}", "expected a finite number"),
    "negative zero": (PLAIN + "optimizer: {lr: -0.0}", "optimizer.lr=-0.0: expected a number above 0"),
    "width without end": (PLAIN.replace("width: 4", "width: 1000000000000"), "width=1000000000000, expected at most"),
    "blocks without end": (PLAIN.replace("width: 4", "blocks: 1000000000"), "blocks=1000000000, expected at most"),
    "NUL": (PLAIN + 'runs: "a\\0b"', "holds a character that cannot be read"),
    "terminal codes": (PLAIN + 'runs: "\\e[2J"', "holds a character that cannot be read"),
    "terminal codes in a key": (PLAIN + '"\\e[2J": 1', "holds a character that cannot be read"),
    "half a character": (PLAIN + 'runs: "\\ud800"', "holds a character that cannot be read"),
    "two lines": (PLAIN + 'runs: "a\\nerror: b"', "holds a character that cannot be read"),
    "key that is no text": (PLAIN + "data_options: {1: 2}", "the key 1 is no text"),
    "key that is a list": (PLAIN + "? [a, b]\n: 1", "unhashable key"),
    "includes": ("defaults: [../../../etc/passwd]\n" + PLAIN, "defaults is no such key"),
    "Hydra's own settings": (PLAIN + "hydra: {run: {dir: /}}", "hydra is no such key"),
    "id out of the folder": (PLAIN + "id: ../../x", "as it names a folder"),
    "id that is long": (PLAIN + "id: " + "x" * 300, "as it names a folder"),
    "model by path": (PLAIN.replace("resnet20", "os.system"), "student='os.system'"),
    "data by path": (PLAIN + "data: ../../x", "data='../../x'"),
    "path that is no text": (PLAIN + "data: table\ndata_options: {path: [a]}", "path=['a']: expected text"),
    "not text": (b"\xff\xfe\x00s", "cannot be read as YAML"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES)
def test_a_hostile_recipe(home, answered, content, says):
    (home.recipes / "x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in answered(["recipe=x"])
    assert os.listdir(home.folder) == ["recipes"]


WORDS = {
    "recipe out of the folder": (["recipe=../../outside.txt"], "no such recipe"),
    "recipe by its whole path": (["recipe=/etc/passwd"], "no such recipe"),
    "resolver": (["recipe=x", "runs=${oc.env:MADE_UP_SECRET}"], "resolvers are not allowed"),
    "resolver in pieces": (["recipe=x", "id=oc.env", "runs='${${id}:MADE_UP_SECRET}'"], "resolvers are not allowed"),
    "target": (["recipe=x", "student_options={_target_: os.system}"], "hold no code"),
    "launcher": (["recipe=x", "hydra/launcher=basic"], "no such key"),
    "output folder": (["recipe=x", "hydra.run.dir=/"], "hydra is no such key"),
    "search path": (["recipe=x", "+hydra.searchpath=[file:///tmp]"], "hydra is no such key"),
    "NUL": (["recipe=x", "runs=a\0b"], "cannot be read"),
    "bytes that are no text": (["recipe=x", "runs=\udcff"], "cannot be read"),
    "terminal codes": (["recipe=x", "runs='\x1b[2J'"], "holds a character that cannot be read"),
    "long word": (["recipe=x", "runs=" + "x" * 100_000], "has 100,005 characters"),
    "long number": (["recipe=x", "seed=" + "9" * 3900], "fits 64 bits"),
    "deep word": (["recipe=x", "data_options={a: " + "[" * 500 + "]" * 500 + "}"], "cannot be read"),
    "more levels": (["recipe=x", "data_options={a: " + "[" * 20 + "]" * 20 + "}"], "levels deep"),
    "runs without end": (["-m", "recipe=x", "seed=range(0,1000000000)"], "1,001 runs or more"),
    "runs that multiply": (["-m", "recipe=x", *[f"{k}=range(0,100)" for k in ("seed", "workers")]], "10,000 runs"),
    "all files": (["-m", "recipe=glob(*)"], "cannot be enumerated"),
    "plugins": (["recipe=x", "--config-dir=/tmp"], "cannot be read, expected -m, -h or KEY=VALUE"),
}


@pytest.mark.parametrize(("argv", "says"), WORDS.values(), ids=WORDS)
def test_hostile_words(home, answered, argv, says):
    (home.recipes / "x.yaml").write_text(PLAIN)
    assert says in answered(argv)
    assert os.listdir(home.folder) == ["recipes"]


def test_a_recipe_that_is_no_file(home, answered):
    os.mkfifo(home.recipes / "pipe.yaml")
    (home.recipes / "folder.yaml").mkdir()
    (home.recipes / "link.yaml").symlink_to("/dev/zero")
    (home.recipes / "loop.yaml").symlink_to(home.recipes / "loop.yaml")
    for name in ("pipe", "folder", "link", "loop"):
        assert f"{name}.yaml: is no file" in answered([f"recipe={name}"])


def test_a_recipe_with_a_name_that_is_none(home, answered):
    for name in ("a,b", "${oc.env:HOME}", ".", "a b", "\x1b[2J"):
        (home.recipes / f"{name}.yaml").write_text(PLAIN)
    assert "no such recipe" in answered(["recipe=a"])
    assert "as it names a folder" in answered(["recipe='a b'"])
    assert "as it names a folder" in answered(["recipe=."])


def test_what_a_run_folder_says_it_was_asked(home):
    """``recipe.yaml`` of a run folder is read again when a run goes on, and the folder may be from anyone."""
    path = home.folder / "recipe.yaml"
    for text in (
        "runs: ${oc.env:MADE_UP_SECRET}",
        "id: oc.env\nruns: ${${id}:MADE_UP_SECRET}",
        "x: !!python/name:os.a",
    ):
        path.write_text(PLAIN + text)
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert "outside" not in str(caught.value)


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(text=files(), argv=st.lists(words(), max_size=1))
def test_a_changed_recipe_is_a_recipe_or_one_line(tmp_path_factory, text, argv):
    """``benchmarks/reliability.py hostile`` does it 2,000 times."""
    recipes = tmp_path_factory.mktemp("recipes")
    (recipes / "x.yaml").write_text(text, errors="surrogatepass")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(RecipeError):
            (made,) = compose_all(["recipe=x", *argv], recipes)
            assert made.name == "x"
