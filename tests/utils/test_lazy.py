import subprocess
import sys

import pytest

SETTINGS = ("pruning.settings", "quantization.settings", "distillation.settings", "training.optimizer", "recipe.schema")


def loaded(code):
    shown = "print([name for name in ('torch', 'lightning') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}; {shown}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", SETTINGS)
def test_settings_are_read_without_torch(module):
    assert loaded(f"import sys, lighten.{module}") == "[]"


def test_names_and_modules_are_there_when_they_are_used():
    code = (
        "import sys, lighten.pruning; first = 'torch' in sys.modules; import lighten.pruning.cut; "
        "from lighten.pruning import Plan, latency, mask_, plan_pruning, shrink; "
        "print(first, Plan.__module__, latency.__name__, shrink.__name__, lighten.pruning.score.fpgm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False lighten.pruning.plan lighten.pruning.latency shrink fpgm\n"


@pytest.mark.parametrize("name", ["shrnk", "_rows", "__wrapped__"])
def test_other_names_are_not(name):
    import lighten.pruning

    with pytest.raises(AttributeError, match=rf"module 'lighten.pruning' has no attribute '{name}'"):
        getattr(lighten.pruning, name)
