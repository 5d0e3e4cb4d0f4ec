"""Numbers, masks, pictures, several labels and people's own images run from recipe to measured file and report."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lighten
from lighten.cli.main import main as cli
from lighten.data.fashion_mnist import CLASSES
from lighten.errors import UserError
from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = [
    "teacher_fit.max_epochs=1", "trainer.max_epochs=2", "trainer.limit_train_batches=8", "trainer.limit_val_batches=2",
    "trainer.precision=32-true", "distil.preflight=false",
]  # fmt: skip
SCENES = "size: 24, items: 2, scenes: 96, validation: 16, test: 32"


def go(runs, name, *overrides):
    (recipe,) = compose_all([f"recipe={name}", f"runs={runs}", "id=one", *SHORT, *overrides], RECIPES)
    folder = run(recipe)
    return folder, json.loads((folder / "scores.json").read_text())


def pictures_of(folder):
    """Return the samples that a report shows, their pictures read as PNG."""
    shown = json.loads((folder / "pictures.json").read_text())
    page = (folder / "report.html").read_text()
    for sample in shown["samples"]:
        for key in ("input", "truth", "teacher", "student", "compressed"):
            assert sample[key] in page
            sample[key] = np.asarray(Image.open(io.BytesIO(base64.b64decode(sample[key]))))
    assert len(page) < 3_000_000
    return shown


@pytest.mark.parametrize(
    "targets",
    [["onnx", "openvino"], pytest.param(["onnx", "openvino", "litert", "executorch", "pt2"], marks=pytest.mark.slow)],
    ids=len,
)
def test_masks_reach_runtimes_and_are_shown_beside_the_truth(targets, tmp_path, capsys):
    folder, scores = go(
        tmp_path, "distil_segmentation", f"data_options={{answer: mask, {SCENES}}}",
        "teacher_options={width: 8, depth: 1}", "student_options={width: 8, depth: 1}",
        f"delivery.targets=[{','.join(targets)}]",
    )  # fmt: skip
    assert (scores["schema"], scores["task"]["metric"], scores["task"]["lower_is_better"]) == (2, "mean_iou", False)
    assert set(scores["models"]["compressed"]) >= {"mean_iou", "accuracy", "bytes", "macs", "latency_ms"}
    comparison = scores["comparison"]
    assert comparison["flips_of"] == 32 * 24 * 24
    assert comparison["flips"] <= 0.01 * comparison["flips_of"]
    assert comparison["retention"] == pytest.approx(
        scores["models"]["compressed"]["mean_iou"] / scores["models"]["teacher"]["mean_iou"]
    )
    for target in targets:
        found = scores["targets"][target]
        assert found["agreement"] > 0.97, target
        assert found["mean_iou"] == pytest.approx(scores["models"]["compressed"]["mean_iou"], abs=0.02), target
    assert (scores["parts"]["kind"], len(scores["parts"]["names"])) == ("class", 11)
    shown = pictures_of(folder)
    assert [row["rank"] for row in shown["samples"]] == ["worst"] * 3 + ["median"] * 3
    assert shown["samples"][0]["score"] <= shown["samples"][-1]["score"]
    data = lighten.build_data("scenes", **json.loads((folder / "student/config.json").read_text())["data"]["options"])
    data.prepare_data()
    data.setup("test")
    sample = shown["samples"][0]
    image, mask = data.test_set[sample["sample"]]
    grey = (image[0] * data.std[0] + data.mean[0]).clamp(0, 1).mul(255).round()
    assert np.abs(sample["input"][..., 0].astype(float) - grey.numpy()).max() <= 1
    colours = {tuple(c) for c in sample["truth"].reshape(-1, 3).tolist()}
    assert len(colours) == len(mask.unique())
    card = (folder / "student" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "type: mean_iou" in card
    capsys.readouterr()
    assert cli(["verify", str(folder)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("target", ["openvino", pytest.param("litert", marks=pytest.mark.slow)])
def test_boxes_reach_runtimes_and_are_drawn(target, tmp_path, capsys):
    """LiteRT is the strictest: what it joins with rounded numbers gets their range."""
    folder, scores = go(
        tmp_path, "distil_detector", f"data_options={{answer: boxes, matches: 3, nms: 0.6, {SCENES}}}",
        "teacher_options={widths: [8, 16], neck: 8}", "student_options={widths: [8, 16], neck: 8}",
        f"delivery.targets=[onnx,{target}]",
    )  # fmt: skip
    assert (scores["task"]["name"], scores["task"]["metric"]) == ("detection", "map")
    assert set(scores["models"]["compressed"]) >= {"map", "map_50", "map_75", "bytes", "macs", "latency_ms"}
    assert scores["comparison"]["flips_of"] == 32
    assert scores["targets"][target]["map"] == pytest.approx(scores["models"]["compressed"]["map"], abs=0.01)
    compressed = json.loads((folder / "student" / "compression.json").read_text())
    assert {row["name"] for row in compressed["layers"]} >= {"heads.0.boxes.1", "heads.1.classes.1", "neck.0.0"}
    shown = json.loads((folder / "pictures.json").read_text())["samples"]
    assert {mark["label"] for sample in shown for mark in sample["truth"]} <= set(CLASSES)
    assert all(0 <= edge <= 1 for sample in shown for mark in sample["truth"] for edge in mark["box"])
    assert "pipeline_tag: object-detection" in (folder / "student" / "README.md").read_text()
    capsys.readouterr()
    assert cli(["verify", str(folder)]) == 0, capsys.readouterr().out


def test_numbers_are_measured_in_their_unit_and_shown_against_the_truth(tmp_path, capsys):
    folder, scores = go(
        tmp_path, "distil_table", "teacher_options={hidden: [64, 64]}", "student_options={hidden: [32]}"
    )
    assert (scores["task"]["metric"], scores["task"]["unit"]) == ("r2", "USD")
    small = scores["models"]["compressed"]
    assert small["mae"] < small["rmse"] < 5000
    assert "flips" not in scores["comparison"]
    assert set(scores["comparison"]["likeness"]) == {"relative_error"}
    assert [scores["parts"][key] for key in ("kind", "metric", "lower_is_better")] == ["decile", "mae", True]
    points = json.loads((folder / "points.json").read_text())
    assert points["target"] == "price"
    assert 500 < len(points["true"]) <= 1000
    assert min(points["true"]) > 300
    page = (folder / "report.html").read_text()
    for words in ("Predicted against true", "Residuals", "Decile by decile", "R² kept", "USD"):
        assert words in page
    assert "pipeline_tag: tabular-regression" in (folder / "student" / "README.md").read_text()
    capsys.readouterr()
    assert cli(["verify", str(folder)]) == 0, capsys.readouterr().out
    row = {"carat": 1.0, "cut": "Ideal", "color": "G", "clarity": "VS1", "depth": 61.5, "table": 56.0}
    row |= {"x": 6.4, "y": 6.4, "z": 3.95}
    ((_, torch_says),) = lighten.predict(folder / "student", [row])
    ((_, file_says),) = lighten.predict(folder / "student", [row], file=folder / "student.onnx")
    assert torch_says == pytest.approx(file_says, rel=0.05)
    with pytest.raises(UserError, match="answers task regression, the data are of classification; choose a teacher"):
        go(tmp_path, "smoke", f"teacher_checkpoint={folder / 'teacher'}", "id=two")
    other = "data_options.validation=0.4"  # other training rows, another mean price
    with pytest.raises(UserError, match="answers in numbers standardised by mean"):
        go(tmp_path, "distil_table", f"teacher_checkpoint={folder / 'teacher'}", "id=three", other)


def test_a_folder_of_images_is_all_that_the_recipe_needs(tmp_path, capsys):
    draw = np.random.default_rng(0)
    for number in range(60):
        kind = number % 3
        pixels = draw.integers(0, 80, (22, 20), dtype=np.uint8) + np.uint8(80 * kind)
        path = tmp_path / "photos" / ("cat", "dog", "größe")[kind] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    folder, scores = go(
        tmp_path, "own_images", f"data_options.folder={tmp_path / 'photos'}", "batch_size=8", "workers=0"
    )
    told = capsys.readouterr().out
    assert "found: task classification, 3 classes, inputs 1×" in told
    assert "; chosen: teacher resnet20 (width 32" in told
    assert scores["task"]["name"] == "classification"
    assert scores["models"]["compressed"]["bytes"] < scores["models"]["teacher"]["bytes"] / 4
    files = sorted(map(str, (tmp_path / "photos").rglob("*.jpg")))[:4]
    assert cli(["predict", str(folder / "student"), *files, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [row["source"] for row in answers] == files
    assert {row["answer"]["class"] for row in answers} <= {"cat", "dog", "größe"}


@pytest.mark.slow
def test_pictures_are_cleaned_and_shown(tmp_path):
    folder, scores = go(
        tmp_path, "distil_image", f"data_options={{answer: picture, {SCENES}}}",
        "teacher_options={width: 8, depth: 1, residual: true}", "student_options={width: 8, depth: 1, residual: true}",
    )  # fmt: skip
    assert scores["task"]["metric"] == "psnr"
    models, kept = scores["models"], scores["comparison"]["retention"]
    assert kept == pytest.approx(10 ** ((models["compressed"]["psnr"] - models["teacher"]["psnr"]) / 10))
    assert len(pictures_of(folder)["samples"]) == 6
    assert cli(["verify", str(folder)]) == 0


@pytest.mark.slow
def test_several_labels_come_out_of_a_table(tmp_path):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(400, 3))
    rows = ["a,b,c,warm,wet", *(f"{a},{b},{c},{int(a + b > 0)},{int(c > 0)}" for a, b, c in values)]
    (tmp_path / "days.csv").write_text("\n".join(rows))
    options = f"data_options={{path: {tmp_path / 'days.csv'}, label_columns: [warm, wet]}}"
    folder, scores = go(
        tmp_path, "distil_table", "data=table", options, "batch_size=32", "student_options={hidden: [16]}"
    )
    assert (scores["task"]["name"], scores["task"]["metric"]) == ("multilabel", "macro_f1")
    assert scores["parts"]["names"] == ["warm", "wet"]
    assert scores["comparison"]["flips_of"] == 2 * scores["provenance"]["data"]["samples"]
    assert cli(["verify", str(folder)]) == 0
    ((_, odds),) = lighten.predict(folder / "student", [{"a": 3.0, "b": 3.0, "c": -3.0}])
    assert set(odds) == {"warm", "wet"}
