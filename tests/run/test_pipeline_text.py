"""Text runs from recipe to measured file: a tiny encoder on the embedded glosses; masked language models."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
from word_tokenizer import SPECIAL, save_tokenizer

import lighten
from lighten.data.wordnet_glosses import read_embedded
from lighten.errors import RecipeError, UserError
from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = (
    "{model_type: bert, vocab_size: 30522, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, "
    "intermediate_size: 64, max_position_embeddings: 64}"
)
LIMITS = [
    f"teacher_options={{path: null, config: {SIZES}}}", "batch_size=32", "teacher_fit.max_epochs=1",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=12", "trainer.limit_val_batches=2", "distil.preflight=false",
]  # fmt: skip


def go(runs: Path, name: str, *overrides: str) -> Path:
    (recipe,) = compose_all([f"recipe={name}", f"runs={runs}", "id=one", *LIMITS, *overrides], RECIPES)
    return run(recipe)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folder(runs) -> Path:
    return go(runs, "distil_bert", "student_options={layers: 2, width: 0.75}")


def test_a_student_of_half_the_layers_comes_out_pruned_quantized_and_measured(folder) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    models, comparison = scores["models"], scores["comparison"]
    assert models["teacher"]["bytes"] > models["student"]["bytes"] > 3 * models["compressed"]["bytes"]
    assert comparison["flips"] <= 4
    plan = json.loads((folder / "plan.json").read_text())
    kinds = {group["kind"] for group in plan["groups"]} if "kind" in plan["groups"][0] else set()
    assert kinds <= {"heads", "channels", "nodes"}
    small = lighten.load(folder / "student")
    assert small.bert.encoder.layer[0].intermediate.dense.out_features < 48
    assert len(small.bert.encoder.layer) == 2
    assert small.bert.embeddings.word_embeddings.embedding_dim == 32


def test_texts_of_any_length_run_in_the_file_as_in_torch(folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    session = onnxruntime.InferenceSession(folder / "student.onnx")
    small = lighten.load(folder / "student")
    for texts in (["a bird"], ["a large flightless bird of the plains", "the act of singing", "blue"]):
        batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        logits = session.run(None, {name: x.numpy() for name, x in batch.items()})[0]
        with torch.no_grad():
            expected = small(**batch).logits.numpy()
        np.testing.assert_allclose(logits, expected, atol=0.02)


def test_the_teachers_folder_is_one_of_transformers(folder) -> None:
    found = AutoModelForSequenceClassification.from_pretrained(folder / "teacher").eval()
    again = lighten.load(folder / "teacher")
    batch = AutoTokenizer.from_pretrained(folder / "teacher")(["a bird"], return_tensors="pt")
    with torch.no_grad():
        ours = again(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(found(**batch).logits, ours)


def test_the_teacher_is_asked_once_a_sample(folder, runs) -> None:
    (cache,) = (runs / "cache").iterdir()
    assert (cache / "meta.json").exists()
    identity = json.loads((cache / "meta.json").read_text())["identity"]
    assert set(identity) == {"teacher", "data", "precision"}
    assert [path.name for path in cache.glob("part-*.bin")] == ["part-0.bin"]


def test_a_trained_teacher_is_taken_from_its_folder_and_must_fit(folder, tmp_path) -> None:
    checkpoint = f"teacher_checkpoint={folder / 'teacher'}"
    config = json.loads((folder / "teacher" / "config.json").read_text())
    config["classes"] = [*config["classes"][1:], config["classes"][0]]
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for path in (folder / "teacher").iterdir():
        (swapped / path.name).write_bytes(path.read_bytes())
    (swapped / "config.json").write_text(json.dumps(config))
    again = [checkpoint.replace(str(folder / "teacher"), str(swapped)), "distil.preflight=true"]
    with pytest.raises(UserError, match=r"preflight: .*order"):
        go(tmp_path, "distil_bert", "student_options={layers: 2}", *again)
    both = f"teacher_checkpoint=[{folder / 'teacher'},{swapped}]"
    with pytest.raises(UserError, match=r"preflight: teacher 2 of 2: .*order"):
        go(tmp_path / "two", "distil_bert", "student_options={layers: 2}", both, again[1])
    (swapped / "config.json").write_text((folder / "teacher" / "config.json").read_text())
    words = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["bird"], vocabulary["dog"] = vocabulary["dog"], vocabulary["bird"]
    (swapped / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"preflight: .*token.*(bird|dog)"):
        go(tmp_path, "distil_bert", "student_options={layers: 2}", *again)
    (recipe,) = compose_all(["recipe=distil_cnn", f"runs={tmp_path}", checkpoint], RECIPES)
    with pytest.raises(UserError, match="45 classes, fashion_mnist has 10; choose a teacher of this task"):
        run(recipe)


@pytest.mark.slow
def test_a_student_learns_language_and_then_a_task(tmp_path) -> None:
    counts = Counter(word for text in read_embedded().train.texts for word in text.lower().split() if word.isalpha())
    words = [word for word, _ in counts.most_common(500)]
    tokenizer = f"data_options.tokenizer={save_tokenizer(tmp_path / 'words', words=words)}"
    sizes = SIZES.replace("30522", str(len(words) + len(SPECIAL)))
    teacher = f"teacher_options={{path: null, config: {sizes}, head: masked_lm}}"
    folder = go(tmp_path, "distil_bert_pretrain", teacher, tokenizer)
    student = AutoModelForMaskedLM.from_pretrained(folder / "student")
    assert type(student).__name__ == "DistilBertForMaskedLM"
    assert student.config.n_layers == 2
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    logged = set().union(*history)
    assert {"distil/soft_labels", "distil/cross_entropy", "distil/hidden_cosine", "student/loss", "gap/kl"} <= logged
    task = go(
        tmp_path, "distil_bert", tokenizer, teacher.replace(", head: masked_lm", ""),
        "student=transformers", f"student_options.path={folder / 'student'}", "student_options.layers=null",
        "compress.prune.amount=null", "trainer.max_epochs=1",
    )  # fmt: skip
    before = student.distilbert.embeddings.word_embeddings.weight.detach()
    after = lighten.load(task / "dense").distilbert.embeddings.word_embeddings.weight.detach()
    assert float((before - after).abs().mean()) < 0.05 * float(before.abs().mean())


@pytest.mark.filterwarnings("ignore:distil has no effect")
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["teacher=null", "distil={}"], "expected a teacher to take its layers from"),
        (["student_options={layer: 2}"], "did you mean 'layers'"),
        (["distil.cache_dtype=float8"], "distil.cache_dtype='float8'"),
        (["distil.temperature={from: 4.0, too: 1.0}"], "did you mean 'to'"),
        (["distil.losses={hnt: 1.0}"], "did you mean 'hint'"),
        (["distil.temperature=-1"], "distil.temperature=-1"),
        (["distil.losses={dkd: 1.0}", "distil.loss_options={dkd: {betta: 2.0}}"], "did you mean 'beta'"),
        (["distil.losses={hint: 1.0}", "distil.layers=3"], "distil.layers=3: expected 'uniform'"),
        (["teacher_checkpoint=[1, 2]"], "expected a folder, or a list of folders"),
        (["teacher_checkpoint=3"], "expected a folder, or a list of folders"),
    ],
)
def test_settings_that_make_no_sense_are_told_before_anything_runs(overrides, told) -> None:
    with pytest.raises(RecipeError, match=told):
        compose_all(["recipe=distil_bert", *overrides], RECIPES)


@pytest.mark.parametrize(
    ("recipe", "overrides", "told"),
    [
        ("distil_cnn", ["distil.losses={relations: 1.0}"], "relations need encoder layers with self-attention"),
        ("distil_cnn", ["distil.losses={mean_squared_error: 1.0}"], "has no use for"),
        (
            "distil_cnn",
            ["distil.losses={hint: 1.0}", "distil.layers={stage1: stage3}"],
            "pair layers of equal resolution",
        ),
        ("distil_cnn", ["distil.losses={hint: 1.0}", "distil.layers={stage7: stage3}"], "no layer of the student"),
        ("distil_cnn", ["distil.cache=true"], "set data_options.views=4, or data_options.augment=false"),
        (
            "distil_cnn",
            ["distil.cache=true", "data_options.views=2", "distil.losses={hint: 1.0}"],
            "keeps logits alone",
        ),
        ("distil_cnn", ["distil.teacher_weights=[1.0, 2.0]"], "expected 1 numbers above zero"),
    ],
)
def test_what_a_distillation_cannot_do_is_told_before_the_teacher_is_trained(recipe, overrides, told, tmp_path) -> None:
    (made,) = compose_all([f"recipe={recipe}", f"runs={tmp_path}", "id=one", *overrides], RECIPES)
    with pytest.raises(UserError, match=told):
        run(made)
    assert not (tmp_path / "references").exists()
