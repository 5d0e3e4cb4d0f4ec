"""The wheel and the source distribution: what is in them, and that lighten works from them with no checkout beside."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PARTS = (
    "src", "recipes", "slurm", "start", "tests", "docs", "benchmarks", "scripts", ".ci", ".github", "pyproject.toml",
    "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "mkdocs.yml",
    "train.py", ".gitignore", ".pre-commit-config.yaml",
)  # fmt: skip
NOT_FOR_IMAGES = ("transformers", "datasets", "wandb", "optuna")
"""What docs/guide/install.md says that networks of images do without."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2]))"
HERE = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
"""An environment in which nothing points to the checkout."""


def run(command, folder, **settings):
    """Return what a command prints; its exit code must be 0."""
    home = {"HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=HERE | home, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def built(kind, source):
    """Return the file that the build makes of a source tree, by the setuptools that are installed here."""
    name = run([sys.executable, "-c", BUILD, kind, "dist"], source).splitlines()[-1]
    return source / "dist" / name


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, so that no build leaves anything there."""
    copy = tmp_path_factory.mktemp("source")
    rubbish = shutil.ignore_patterns("__pycache__", "*.egg-info", "runs", ".hypothesis", "build", "dist")
    for name in PARTS:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=rubbish)
        else:
            shutil.copy2(path, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source):
    return built("wheel", source)


@pytest.fixture(scope="module")
def sdist(source):
    return built("sdist", source)


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def of(patterns, folder=ROOT):
    return {path.relative_to(ROOT).as_posix() for pattern in patterns for path in folder.glob(pattern)}


def test_the_wheel_holds_the_package_its_data_and_what_stands_at_the_root(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {name.removeprefix("src/") for name in of(["**/*.py"], ROOT / "src")}
    data = {name.removeprefix("src/") for name in of(["**/*.parquet", "**/LICENSE-*", "**/*.yaml", "**/py.typed",
                                                      "delivery/report/templates/*[!c]"], ROOT / "src" / "lighten")
            if "__pycache__" not in name}  # fmt: skip
    shipped = of(["recipes/*.yaml", "slurm/*.sbatch", "start/*.py", "start/recipes/*.yaml"])
    assert len(shipped) > 18
    mine = {name for name in held if ".dist-info/" not in name}
    assert mine == package | data | {f"lighten/shipped/{name}" for name in shipped}
    for name in shipped:
        assert zipfile.ZipFile(wheel).read(f"lighten/shipped/{name}") == (ROOT / name).read_bytes()


def test_the_wheel_is_of_this_version_and_has_the_command(wheel):
    assert wheel.name == f"lighten-{VERSION}-py3-none-any.whl"
    info = f"lighten-{VERSION}.dist-info"
    files = zipfile.ZipFile(wheel)
    assert "lighten = lighten.cli.main:main" in files.read(f"{info}/entry_points.txt").decode()
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/src/lighten/data/LICENSE-diamonds"} <= set(files.namelist())


def test_the_version_is_said_once_and_elsewhere_alike():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert f"\n## {VERSION}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_a_release_keeps_no_secret():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert "secrets." not in text
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "build"
    assert any(step.get("run") == ".ci/run" for step in jobs["build"]["steps"])


def test_the_source_distribution_holds_what_builds_and_tests_it(sdist):
    assert sdist.name == f"lighten-{VERSION}.tar.gz"
    with tarfile.open(sdist) as files:
        held = {name.partition("/")[2] for name in files.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix() for name in PARTS for path in [ROOT / name, *(ROOT / name).rglob("*.*")]
    }
    caches = ("__pycache__", ".egg-info", "/runs/", "/build/", "/dist/")
    assert {name for name in wanted if not any(each in name for each in caches)} <= held


def test_a_wheel_of_the_source_distribution_is_the_same(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as files:
        files.extractall(tmp_path, filter="data")
    again = built("wheel", tmp_path / f"lighten-{VERSION}")
    contents = [{name: files.read(name) for name in files.namelist() if not name.endswith("RECORD")}
                for files in map(zipfile.ZipFile, (wheel, again))]  # fmt: skip
    assert contents[0].keys() == contents[1].keys()
    assert {name for name in contents[0] if contents[0][name] != contents[1][name]} == set()


def lighten(words, unpacked, folder):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from lighten.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    return run([sys.executable, "-I", "-c", code, str(unpacked), *words], folder)


def test_away_from_any_checkout_recipes_are_there_and_a_folder_adds_to_them(unpacked, tmp_path):
    names = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert {line.split()[0] for line in lighten(["recipes"], unpacked, tmp_path).splitlines()} == names
    (tmp_path / "recipes").mkdir()
    for name in ("smoke", "own"):
        (tmp_path / "recipes" / f"{name}.yaml").write_text(f"# Mine, called {name}.\n")
    told = lighten(["recipes"], unpacked, tmp_path)
    assert {line.split()[0] for line in told.splitlines()} == names | {"own"}
    assert {"Mine, called smoke.", "Mine, called own."} <= {line.split(maxsplit=1)[1] for line in told.splitlines()}


def test_away_from_any_checkout_a_project_is_begun(unpacked, tmp_path):
    lighten(["init", "project"], unpacked, tmp_path)
    assert (tmp_path / "project" / "train.py").read_bytes() == (ROOT / "start" / "train.py").read_bytes()
    assert (tmp_path / "project" / "slurm" / "train.sbatch").exists()


def borrow(folder, without):
    """Make a folder of links to all packages that are installed here, but some."""
    folder.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.suffix != ".pth" and path.name.partition("-")[0].partition(".")[0] not in without:
            (folder / path.name).symlink_to(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_in_an_environment_of_its_own_it_does_all_of_it(kind, request, tmp_path):
    """It borrows packages from this one: for the source distribution, without those that images do not need."""
    place, away = tmp_path / "venv", tmp_path / "away"
    away.mkdir()
    venv.create(place, with_pip=False, symlinks=True)
    python, packages = place / "bin" / "python", next((place / "lib").glob("python*")) / "site-packages"
    borrow(tmp_path / "borrowed", without=("lighten", *(NOT_FOR_IMAGES if kind == "sdist" else ())))
    (packages / "borrowed.pth").write_text(str(tmp_path / "borrowed"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    run([*pip, "--no-build-isolation", str(request.getfixturevalue(kind))], away)

    def call(*words):
        return run([str(place / "bin" / words[0]), *words[1:]], away)

    assert str(place) in call("python", "-c", "import lighten; print(lighten.__file__)")
    assert call("lighten", "--version") == f"lighten {VERSION}\n"
    assert "smoke" in call("lighten", "recipes")
    there = call("python", "-c", f"from importlib.util import find_spec; print(*filter(find_spec, {NOT_FOR_IMAGES}))")
    assert there.split() == ([] if kind == "sdist" else list(NOT_FOR_IMAGES))
    assert "Pruning plan: 50.0% of 112 channels" in " ".join(call("lighten", "plan", "recipe=smoke").split())
    call("lighten", "train", "recipe=smoke", "id=one")
    assert (away / "runs" / "smoke" / "one" / "report.html").exists()
    if kind == "sdist":  # whose wheel is the same
        return
    call("lighten", "init", "project")
    short = ["trainer.max_epochs=1", "teacher_fit.max_epochs=1", "trainer.log_every_n_steps=1"]
    call("python", "project/train.py", "recipe=mine", "id=two", "trainer.limit_train_batches=60", *short)
    assert (away / "runs" / "mine" / "two" / "student.onnx").exists()
    call("lighten", "compress", "runs/mine/two/teacher", "--max-drop", "0.5", "--budget", "1 epoch")
    assert (away / "runs" / "mine" / "two" / "teacher-compressed" / "best" / "student.onnx").exists()
