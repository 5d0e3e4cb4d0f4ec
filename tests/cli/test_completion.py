"""Completion, asked of a real bash; the scripts for zsh and fish are held against the parser."""

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from finished_run import write_run

from lighten.cli.completion import SHELLS, keys, options_of, script, values_of
from lighten.cli.main import COMMANDS as STEPS
from lighten.cli.main import main
from lighten.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
ASK = """
source "$1"
complete -p lighten > /dev/null || exit 3
COMP_LINE="$2" COMP_POINT=${#2} COMP_WORDS=($2) COMP_CWORD=0 COMPREPLY=(stale)
_lighten
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    path = home / "lighten.bash"
    path.write_text(script("bash"))
    for name in ("smoke", "mine", "minor"):
        (home / "recipes").mkdir(exist_ok=True)
        (home / "recipes" / f"{name}.yaml").touch()
    for name in ("smoke/one/dense", "smoke/two words", "prune_cnn/a/student"):
        (home / "runs" / name).mkdir(parents=True)
    (home / "runs" / "smoke" / "note.txt").touch()

    def complete(line, cwd=home):
        command = ["bash", "--norc", "-c", ASK, "bash", str(path), line]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    return complete


def test_steps_are_completed(bash):
    assert bash("lighten ") == list(STEPS)
    assert bash("lighten re") == ["recipes", "report"]
    assert bash("lighten xyz") == []


def test_options_are_those_of_the_step(bash):
    for step in STEPS:
        assert sorted(bash(f"lighten {step} -")) == sorted(options_of(step)), step
    assert bash("lighten compare runs/smoke/one --s") == ["--sort"]
    assert options_of("export") == {
        "--help": "show this help message and exit",
        "--json": "print JSON, and nothing else, to standard output",
    }


def test_recipes_are_those_of_lighten_and_of_where_one_stands(bash, tmp_path):
    shipped = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert bash("lighten train recipe=") == [*shipped, "mine", "minor"]  # after =, as bash splits words
    assert bash("lighten train recipe=distil_c") == ["distil_cnn"]
    assert bash("lighten plan recipe=mi") == ["mine", "minor"]
    assert bash("lighten train recipe=", cwd=tmp_path) == shipped
    for shell in SHELLS:
        assert f" {' '.join(shipped)} recipes/*.yaml" in script(shell).replace("(", " ")


def test_keys_of_recipes_are_completed_up_to_their_value(bash):
    assert bash("lighten train re") == ["recipe=", "resume="]
    assert bash("lighten train recipe=smoke compress.prune.am") == ["compress.prune.amount="]
    assert bash("lighten train recipe=smoke compress.prune.amount=") == []
    found = [key.rstrip("=") for key in keys()]
    assert {key.partition(".")[0] for key in found} == {field.name for field in fields(Recipe)} - {"name"}
    assert {"trainer.max_epochs", "student_fit.optimizer.lr", "distil.temperature"} <= set(found)


@pytest.mark.parametrize("step", ["export", "measure", "verify", "compare", "push", "report"])
def test_run_folders_are_completed(bash, step):
    assert bash(f"lighten {step} ") == ["runs/prune_cnn/a", "runs/smoke/one", r"runs/smoke/two\ words"]
    assert bash(f"lighten {step} runs/p") == ["runs/prune_cnn/a"]


def test_model_folders_and_words_are_completed(bash, tmp_path):
    assert bash("lighten quantize ") == ["runs/smoke/one/dense", "runs/prune_cnn/a/student"]
    assert bash("lighten quantize x --mode ") == ["static", "dynamic", "float16", "bfloat16"]
    assert bash("lighten compare --sort lat") == ["latency", "latency_32"]
    assert bash("lighten completion ") == list(SHELLS)
    assert bash("lighten export ", cwd=tmp_path) == []


def test_words_that_are_offered_are_taken(capsys, tmp_path):
    for mode in values_of("quantize")["--mode"]:
        assert main(["quantize", str(tmp_path), "--mode", mode]) == 1
        assert "did you mean" not in capsys.readouterr().err
    runs = [str(write_run(tmp_path / "recipe" / name)) for name in ("one", "two")]
    assert main(["compare", *runs, "--sort", "hash"]) == 1
    told = capsys.readouterr().err
    assert all(re.search(rf"\b{word}\b", told) for word in values_of("compare")["--sort"])


@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_knows_every_step_option_and_key(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"@[A-Z_]+@", text)
    for step in STEPS:
        line = {"bash": rf"^    {step}\) options='(.*)'", "zsh": rf"^        {step}\) found=\((.*)\) ;;",
                "fish": rf"^complete .*from {step}' (-.*)"}[shell]  # fmt: skip
        said = "\n".join(re.findall(line, text, re.MULTILINE))
        for option in options_of(step):
            written = option.replace("--", "-l ") if shell == "fish" and option != "-m" else option
            assert re.search(rf"(^|[ '])(-s m|{written})([: ]|$)", said, re.MULTILINE), (step, option)
    assert all(key in text for key in keys())


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", "csh"])
    assert ended.value.code == 2
    assert "bash" in capsys.readouterr().err
