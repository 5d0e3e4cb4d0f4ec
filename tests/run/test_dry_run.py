"""What would stop a run is found before anything is trained."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import lighten
from lighten.errors import UserError
from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run

RECIPES = Path(__file__).parents[2] / "recipes"


def smoke(runs, *overrides, name="smoke"):
    (recipe,) = compose_all([f"recipe={name}", f"runs={runs}", "id=one", *overrides], RECIPES)
    return run(recipe)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("compress.prune.exclude=[layer9]", "exclude='layer9' matches no layer"),
        ("compress.quantize.exclude=[layer9]", "exclude='layer9' matches no layer"),
        ("compress.prune.amount=0.99", "would empty"),
        ("student_checkpoint={dense7}", "gives 7 classes, fashion_mnist has 10"),
        ("student_checkpoint={student}", "is compressed already"),
        ("student_checkpoint={nothing}", "no such folder"),
    ],
)
def test_what_a_student_does_not_bear_is_told_before_a_teacher_is_trained(tmp_path, override, told):
    model = lighten.build_model("cnn", num_classes=7, input_shape=(1, 28, 28), widths=[8])
    ten = lighten.build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[8])
    compressed = lighten.shrink(ten, lighten.plan_pruning(ten, torch.zeros(2, 1, 28, 28), 0.5))
    places = {
        "dense7": lighten.save(model, tmp_path / "seven"),
        "student": lighten.save(compressed, tmp_path / "compressed"),
        "nothing": tmp_path / "none",
    }
    with pytest.raises(UserError, match=told) as caught:
        smoke(tmp_path, override.format(**places) if "{" in override else override)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "references").exists()


def test_a_teacher_of_another_task_is_refused(tmp_path):
    model = lighten.build_model("cnn", num_classes=7, input_shape=(1, 28, 28), widths=[8])
    lighten.save(model, tmp_path / "teacher")
    with pytest.raises(UserError, match="gives 7 classes, fashion_mnist has 10"):
        smoke(tmp_path, f"teacher_checkpoint={tmp_path / 'teacher'}")


def test_a_target_that_is_not_installed_is_told_before_training(tmp_path, monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        "lighten.delivery.runtimes.packages.find_spec", lambda name: None if name == "litert_torch" else plain(name)
    )
    with pytest.raises(
        UserError, match=r"'litert' needs litert-torch; install it with: pip install 'lighten\[litert\]'"
    ):
        smoke(tmp_path, "delivery.targets=[onnx,litert]", name="quantize_cnn")
    assert not (tmp_path / "references").exists()


SIZES = (
    "{model_type: bert, vocab_size: 30522, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, "
    "intermediate_size: 64, max_position_embeddings: 64}"
)
TEXT = [f"teacher_options={{path: null, config: {SIZES}}}", "teacher_fit.max_epochs=1", "distil.preflight=false"]
SMALL = "config.vocab_size=20000"
FRESH = ["student=transformers", f"student_options.config={SIZES}", "student_options.layers=null"]


@pytest.mark.filterwarnings("ignore:distil has no effect")
@pytest.mark.parametrize(
    ("overrides", "who"),
    [
        ([*FRESH, f"student_options.{SMALL}", "teacher=null", "distil={}"], "student"),
        ([*FRESH, f"teacher_options.{SMALL}"], "teacher"),
        (["student_options.layers=2", f"teacher_options.{SMALL}"], "student"),
    ],
    ids=["no teacher", "teacher", "student made of its teacher"],
)
def test_more_words_than_rows_are_told_before_anything_is_trained(tmp_path, monkeypatch, overrides, who) -> None:
    monkeypatch.setattr(lighten.run.pipeline, "teachers_of", None)
    with pytest.raises(UserError) as caught:
        smoke(tmp_path, *TEXT, *overrides, name="distil_bert")
    says = rf"data \w+: tokenizer gives ids up to 30521 \(.+\), the {who}'s embedding has 20000 rows; use the {who}'s"
    assert re.match(says, str(caught.value))
    assert "\n" not in str(caught.value)
