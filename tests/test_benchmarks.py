"""``python -m benchmarks`` makes one table of what its parts say, and ``mutations.py`` finds what no test notices.

Parts here are small scripts of their own: what real ones measure takes minutes.
"""

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
GOOD = """
import pathlib, sys
from rows import Row, add_row, command
path = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
with path.with_name("asked").open("a") as log:
    log.write("x")
add_row(path, Row("x", "a step", "ms", 2.0, {"A": 4.0, "B": "not installed: pip install b"}, {"lighten": 0.25}, command=command()))
"""  # noqa: E501
SLOW = GOOD + "import time\ntime.sleep(60)"
FAILS = "raise SystemExit('no such processor')"


def load(name: str):
    spec = util.spec_from_file_location(f"benchmarks_{name.strip('_')}", BENCHMARKS / f"{name}.py")
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses ask for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """Lets the scripts of the folder, and the ones written here, import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def part(folder: Path, name: str, code: str, limit: int = 60):
    from parts import Part

    script = folder / f"{name}.py"
    script.write_text(code)
    return Part(name, f"what {name} claims", str(script), ["--long"], ["--short"], limit)


def test_the_parts_are_listed_and_fit_into_their_time():
    words = [sys.executable, "-m", "benchmarks", "--list"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split()[0] for line in told[:-1]]
    assert {"step", "speed", "exact", "accuracy", "pruning", "zoo", "distil", "resume", "live"} <= set(names)
    assert int(told[-1].split()[0]) <= 75
    scripts = [line.partition("(benchmarks/")[2].partition(",")[0] for line in told[:-1]]
    assert all((BENCHMARKS / script).is_file() for script in scripts)


def test_an_unknown_part_is_named(scripts, capsys):
    with pytest.raises(SystemExit):
        load("__main__").main(["stepp"])
    assert "no part 'stepp'" in capsys.readouterr().err


def test_one_table_of_what_is_measured_fails_and_takes_too_long(scripts):
    parts = [part(scripts, "good", GOOD), part(scripts, "fails", FAILS), part(scripts, "slow", SLOW, limit=3)]
    out = scripts / "out"
    assert load("__main__").main(["--quick", "--out", str(out)], parts) == 1
    table = json.loads((out / "table.json").read_text())
    assert {"processor", "class", "cores", "threads"} <= set(table["machine"])
    assert {"torch", "torchdistill", "nncf"} <= set(table["versions"])
    assert len(table["load"]) == 2
    rows = [(row["part"], row["claim"], row["ours"]) for row in table["rows"]]
    assert rows == [
        ("good", "a step", 2.0),
        ("fails", "what fails claims", "failed: no such processor"),
        ("slow", "a step", 2.0),
        ("slow", "what slow claims", "slow: not ended after 3 s"),
    ]
    assert table["rows"][0]["ratios"] == {"A": 0.5}
    assert table["rows"][0]["command"] == "python benchmarks/good.py --short"
    lines = (out / "table.md").read_text().splitlines()
    assert "| good | a step | lower | **lighten** | 2 ms | ± 0.25 |  | `python benchmarks/good.py --short` |" in lines
    assert "|  |  |  | A | 4 ms |  | 0.5 |  |" in lines
    assert "|  |  |  | B | not installed: pip install b |  |  |  |" in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_what_is_done_is_not_run_again_unless_asked(scripts):
    parts, out = [part(scripts, "good", GOOD)], scripts / "out"
    main = load("__main__").main
    asked = []
    for words in ([], [], ["--quick"], ["--quick", "--again"]):
        assert main([*words, "--out", str(out)], parts) == 0
        asked.append(len((out / "asked").read_text()))
    assert asked == [1, 1, 2, 1]  # the last one began with an empty folder


def test_a_row_takes_the_place_of_an_earlier_one_of_its_claim(scripts):
    from rows import Row, add_row, read

    path = scripts / "rows.json"
    for ours in (1.0, 2.0):
        add_row(path, Row("x", "one", "ms", ours))
    add_row(path, Row("x", "other", "ms", 3.0))
    add_row(None, Row("x", "nowhere", "ms", 4.0))
    assert [(row.claim, row.ours) for row in read(path)] == [("one", 2.0), ("other", 3.0)]


@pytest.mark.parametrize(
    ("flags", "name"),
    [("avx2 avx512f avx512_vnni amx_int8", "AMX"), ("avx2 avx512f avx512_vnni", "AVX512-VNNI"), ("avx2", "AVX2"),
     ("sse", "none known")],
)  # fmt: skip
def test_a_processor_belongs_to_the_best_class_that_it_has(scripts, flags, name):
    from comparison import processor_class

    assert processor_class(frozenset(flags.split())) == name


TREE = {
    "src/lighten/__init__.py": "",
    "src/lighten/room/__init__.py": "",
    "src/lighten/room/it.py": "def f(x):\n    return x + 3\n\n\nUNSEEN = 8\n",
    "tests/room/test_it.py": "from lighten.room.it import f\n\n\ndef test_f():\n    assert f(9) == 12\n",
}
ASK = """
import pathlib, sys
import mutations
mutations.ROOT, mutations.HEAVY = pathlib.Path(sys.argv[1]), ()
mutations.ROOMS = {"it": mutations.Room(["room/it.py"])}
words = ["--rooms", "it", "--json", sys.argv[2]]
assert mutations.main([*words, "--groups", "room"]) == 0  # there are none
assert not pathlib.Path(sys.argv[2]).exists()
assert mutations.main([*words, "--groups", "name"]) == 0
mutations.judge = None
assert mutations.main(words) == 0
with mutations.Tree() as tree:
    print("no more asked, then", tree.run(("tests/room/test_it.py",), 0.001)[0])
"""
SOURCE = '''
def f(a: int = 3, b: "list[int]" = (), *, c=True):
    """Return 5 of it."""
    a.check(2)
    if a < 4 and not c:
        raise ValueError("not 7")
    return a + 1.5 if b else -a


def g(a=1):
    raise NotImplementedError


@dataclass(frozen=True)
class C:
    """No breakages."""
'''


def test_each_operator_breaks_one_line_and_no_annotation_text_or_error(scripts):
    from mutation_sites import sites_of

    found = [(site.line, site.operator, site.after.strip()) for site in sites_of(SOURCE)]
    assert found == [
        (2, "default", 'def f(a: int = 3, b: "list[int]" = (), *, c=False):'),
        (2, "default", 'def f(a: int = 4, b: "list[int]" = (), *, c=True):'),
        (4, "call", "pass"),
        (4, "constant", "a.check(3)"),
        (5, "and, or", "if (a < 4 or not c):"),
        (5, "comparison", "if a > 4 and not c:"),
        (5, "condition", "if (not (a < 4 and (not c))):"),
        (5, "constant", "if a < 5 and not c:"),
        (7, "arithmetic", "return a - 1.5 if b else -a"),
        (7, "condition", "return a + 1.5 if (not (b)) else -a"),
        (7, "constant", "return a + 3.0 if b else -a"),
    ]


def test_a_draw_is_the_seeds_and_grows(scripts):
    from mutation_sites import drawn

    rooms = {"masks": [Path("src/lighten/pruning/mask.py")], "scales": [Path("src/lighten/quantization/lsq.py")]}
    few, many = (drawn(rooms, ROOT, count, 0) for count in (6, 20))
    assert many[:6] == few
    assert drawn(rooms, ROOT, 20, 1) != many
    assert [site.room for site in few] == ["masks", "scales"] * 3
    assert len({site.key for site in many}) == 20


def test_what_tests_notice_is_killed_and_the_rest_survives(scripts):
    """A tree with one function, of which half is tested; a second call asks nothing.

    In a process of its own: those that test are copies of it, and this one knows lighten already.
    """
    tree = scripts / "tree"
    for path, text in TREE.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    script = scripts / "ask.py"
    script.write_text(ASK)
    results = scripts / "mutations.json"
    words = [sys.executable, script, tree, results]
    quick = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    told = subprocess.run(words, env=quick, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    found = {at["after"].strip(): (at["kind"], at["by"]) for at in json.loads(results.read_text()).values()}
    killed = ("killed", "name")
    assert found == {"return x - 3": killed, "return x + 4": killed, "UNSEEN = 9": ("survived", "")}
    assert {path: path.read_bytes() for path in tree.rglob("*.py")} == before
    assert "3 of 3 breakages asked" in told.stdout
    assert told.stdout.endswith("no more asked, then hangs\n")


def test_the_tests_of_a_file_come_nearest_first(scripts):
    from mutation_sites import Site
    from mutations import groups_of

    groups = groups_of(Site("masks", "src/lighten/pruning/mask.py", 1, "", "", ""), ROOT)
    assert list(groups) == ["name", "room", "imports", "folder"]
    assert groups["name"] == ("tests/pruning/test_mask.py",)
    assert "tests/pruning/test_live.py" in groups["imports"] + groups["folder"]
    every = [path for tests in groups.values() for path in tests]
    assert len(every) == len(set(every))
