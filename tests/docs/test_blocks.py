"""Every fenced block of README.md and docs/ is run, or at least checked; what is not is marked there and counted here.

An HTML comment right above a block, which readers of the page do not see, says what is special about it:

- ``<!-- given: CODE -->``: Python that stands for the reader's own model or data, run before the block.
- ``<!-- run with: KEY=VALUE … -->``: a training command is run, with these settings that make it short; ``RUN`` in
  later commands of the page is then its folder. Without it the recipe and its settings are composed and checked.
- ``<!-- not run: WHY -->``: neither run nor checked.

Python blocks of a page run in order, in one namespace and an empty folder. Commands of ``lighten`` are called; where
their folder is a mere ``RUN`` they must accept their arguments and miss the folder. ``sbatch`` is not called: its
script is read by bash, and the recipe composed. YAML blocks are recipes, or configurations of LightningCLI.
"""

import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import yaml
from train_py import train_py as train

from lighten.cli.main import COMMANDS as STEPS
from lighten.cli.main import main as lighten
from lighten.recipe.compose import compose_all
from lighten.recipe.sweep import sweep_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("python", "bash", "yaml", "text")
MARKS = ("given", "run with", "not run")
MAX_NOT_RUN = 1
OTHERS = ("apt-get install ", "pytest", "scancel ", "wandb sync ", "tensorboard --logdir ", "export ", "mkdocs build")
"""What else commands of a page may begin with: not ours to check."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: str
    note: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a page, each with the comment right above it."""
    lines, found, number, mark = path.read_text(encoding="utf-8").splitlines(), [], 0, ("", "")
    page = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    while number < len(lines):
        line = lines[number]
        if line.startswith("<!--"):
            end = next(n for n in range(number, len(lines)) if lines[n].endswith("-->"))
            kind, _, note = "\n".join(lines[number : end + 1])[4:-3].partition(":")
            mark, number = (kind.strip(), note.strip("\n")), end
        elif line.startswith("```"):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].startswith("```"))
            found.append(Block(page, number + 1, line[3:].split(" ")[0], "\n".join(lines[number + 1 : end]), *mark))
            mark, number = ("", ""), end
        elif line.strip():
            mark = ("", "")
        number += 1
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN_HERE = [block for block in BLOCKS if block.mark != "not run"]


def of(language: str) -> list[str]:
    return sorted({block.page for block in RUN_HERE if block.language == language})


def test_there_is_no_block_that_escapes():
    assert len(PAGES) > 14
    assert {block.language for block in BLOCKS} <= set(LANGUAGES)
    assert {block.mark for block in BLOCKS} - {""} <= set(MARKS)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^[ \t]+(```|~~~)|^~~~", text, re.MULTILINE), page
        assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(blocks_of(page)), page


def test_few_blocks_are_not_run_and_each_says_why():
    kept = [block for block in BLOCKS if block.mark == "not run"]
    assert len(kept) <= MAX_NOT_RUN, [block.place for block in kept]
    assert all(len(block.note.split()) >= 3 for block in kept)


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*but have no .val_dataloader")
@pytest.mark.parametrize("page", of("python"))
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": Path(page).stem}
    for block in (b for b in RUN_HERE if b.page == page and b.language == "python"):
        if block.mark == "given":
            exec(compile(textwrap.dedent(block.note), f"{block.place} (given)", "exec"), namespace)
        exec(compile("\n" * block.line + block.text, page, "exec"), namespace)


@pytest.mark.parametrize("page", of("bash"))
def test_commands_run_or_their_arguments_are_right(page, tmp_path, monkeypatch, capsys):
    home(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    run = None
    for block in (b for b in RUN_HERE if b.page == page and b.language == "bash"):
        for command in commands_of(block.text):
            shorter = shlex.split(block.note) if block.mark == "run with" else []
            run = follow(command, shorter, run, block.place, capsys) or run


def home(folder, page):
    """Make a folder like the repository's root, with the recipes that the page adds."""
    for name in ("train.py", "constraints.txt", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("slurm", "recipes"):
        shutil.copytree(ROOT / name, folder / name)
    for block in BLOCKS:
        if block.page == page and block.language == "yaml" and recipe_name(block):
            (folder / "recipes" / f"{recipe_name(block)}.yaml").write_text(block.text, encoding="utf-8")


def commands_of(text):
    for line in text.replace("\\\n", " ").splitlines():
        yield from (part.strip() for part in re.split(r"&&", line.partition(" #")[0]) if not part.startswith("#"))


def follow(command, shorter, run, place, capsys):
    """Run one command, or check it; return the folder of a run that it has made."""
    words = [word if run is None or word != "RUN" else str(run) for word in shlex.split(command)]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]  # a variable of the environment
    words = words[: next((place for place, word in enumerate(words) if word in (">", ">>")), None)]
    if words[:2] == ["python", "train.py"] and words[2] in STEPS:
        words = ["lighten", *words[2:]]
    if words[:2] in (["python", "train.py"], ["lighten", "train"]):
        if not shorter:
            assert composed(words[2:]), place
            return None
        assert train([*words[2:], *shorter], Path("recipes")) == 0, (place, capsys.readouterr().err)
        return max(Path("runs").glob("*/*/recipe.yaml"), key=lambda path: path.stat().st_mtime).parent
    if words[:1] == ["lighten"]:
        wanted = any(re.match(r"(RUN|OTHER)\b", word) for word in words)  # 1: it is not there
        assert called(words[1:]) == wanted, (place, command, capsys.readouterr().err)
    elif words[:1] == ["sbatch"]:
        check_job(words[1:], place)
    elif words[:2] == ["pip", "install"]:
        check_installation(words[2:], place)
    else:
        assert not command or command.startswith(OTHERS), (place, command)
    return None


def called(words):
    try:
        return lighten(words)
    except SystemExit as ended:  # of --help, and of wrong arguments
        return ended.code


def check_job(words, place):
    script = next(number for number, word in enumerate(words) if word.endswith(".sbatch"))
    assert all(word.startswith("--") for word in words[:script]), place
    subprocess.run(["bash", "-n", words[script]], check=True)
    several = ["-m"] if any("," in word for word in words[script + 1 :]) else []
    assert composed([*several, *words[script + 1 :]]), place


def composed(words):
    sweep = sweep_of(words)
    return compose_all(words if sweep is None else sweep.drawn(sweep.first()), Path("recipes"))


def check_installation(words, place):
    extras = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        wanted = re.findall(r"\[([a-z,]+)\]", word)
        assert set(",".join(wanted).split(",")) - {""} <= set(extras), (place, word)
        assert not word.endswith(".txt") or Path(word).exists(), (place, word)


def recipe_name(block):
    named = re.match(r"# recipes/(\w+)\.yaml\n", block.text)
    return named and named[1]


@pytest.mark.parametrize("block", [b for b in RUN_HERE if b.language == "yaml"], ids=lambda block: block.place)
def test_yaml_is_a_recipe_or_names_callbacks_that_take_its_settings(block, tmp_path):
    if recipe_name(block):
        (tmp_path / f"{recipe_name(block)}.yaml").write_text(block.text, encoding="utf-8")
        assert compose_all([f"recipe={recipe_name(block)}"], tmp_path)
        return
    for callback in yaml.safe_load(block.text)["trainer"]["callbacks"]:
        module, _, name = callback["class_path"].rpartition(".")
        signature(getattr(import_module(module), name)).bind(**callback["init_args"])


WRONG = (
    "lighten exprot RUN", "lighten export", "lighten export RUN --fast", "lighten train recipe=smok", "rm -rf runs",
    "python train.py recipe=smoke x=1", "sbatch slurm/train.sbatch recipe=smok", "pip install '.[nothing]'",
)  # fmt: skip


def test_a_page_with_a_mistake_is_found(tmp_path, capsys, monkeypatch):
    """The tests above can fail: each kind of mistake is caught."""
    monkeypatch.chdir(tmp_path)
    home(tmp_path, "none")
    for command in WRONG:
        with pytest.raises((AssertionError, ValueError)):
            follow(command, [], None, "here", capsys)
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: too slow -->\n```python\n1 / 0\n```\n\ntext\n```bash\nls\n```\n")
    assert [(b.line, b.language, b.mark, b.text) for b in blocks_of(page)] == [
        (2, "python", "not run", "1 / 0"), (7, "bash", "", "ls"),
    ]  # fmt: skip


def test_every_command_is_in_the_page_of_the_command_line(capsys):
    with pytest.raises(SystemExit):
        lighten(["--help"])
    listed = set(re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE))
    page = (ROOT / "docs" / "guide" / "command-line.md").read_text(encoding="utf-8")
    assert listed == set(re.findall(r"^\| `lighten (\w+)", page, re.MULTILINE))
