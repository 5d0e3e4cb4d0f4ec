"""Answers to files: the same as the data module's own samples get."""

import json

import numpy as np
import pytest
import torch
from box_files import NAMES, Shown, voc_folder
from box_nets import Bright
from PIL import Image

import lighten
from lighten.cli.main import main as cli
from lighten.delivery.folders.predict import predict
from lighten.errors import UserError
from lighten.tasks import task_of


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes, and a folder of pictures and masks."""
    draw = np.random.default_rng(0)
    for number in range(16):
        pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        for path in (f"kinds/{'cat' if number % 2 else 'dög'}/{number}.png", f"pairs/images/{number}.png"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / path)
        (tmp_path / "pairs/masks").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] // 100).save(tmp_path / f"pairs/masks/{number}.png")
    return tmp_path


def saved(folder, data, model):
    """Write a model folder as a run does."""
    about = {"task": task_of(data.task).settings(), "preprocessing": data.preprocessing()}
    rest = {"classes": list(data.class_names), "mean": list(data.mean), "std": list(data.std)}
    return lighten.save(model.eval(), folder, data={"name": data.name, "options": dict(data.options)}, **about, **rest)


def data_of(name, **options):
    data = lighten.build_data(name, batch_size=4, **options)
    data.prepare_data()
    data.setup("test")
    return data


def test_images_are_prepared_as_the_test_split_is(photos, capsys):
    data = data_of("images", folder=str(photos / "kinds"), size=16)
    model = lighten.build_model("cnn", num_classes=2, input_shape=data.input_shape, widths=[4])
    folder = saved(photos / "student", data, model)
    files = sorted(map(str, (photos / "kinds").rglob("*.png")))
    found = predict(folder, files)
    assert [source for source, _ in found] == files
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in data.test_dataloader()])
    odds, classes = logits.softmax(-1).max(-1)
    told = [(row["class"], row["odds"]) for _, row in found]
    for name, share in zip((data.class_names[c] for c in classes), odds.tolist(), strict=True):
        assert any(name == said and abs(share - p) < 1e-5 for said, p in told), "a test sample is among the files"
    capsys.readouterr()
    assert cli(["predict", str(folder), *files[:2]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{files[0]}: {told[0][0]} ({100 * told[0][1]:.1f} %)"


def test_masks_are_written_as_pictures_of_class_numbers(photos, capsys):
    data = data_of("images", folder=str(photos / "pairs"), size=16)
    model = lighten.build_model("unet", num_classes=data.num_classes, input_shape=data.input_shape, width=4, depth=1)
    folder = saved(photos / "student", data, model)
    file = photos / "pairs/images/3.png"
    ((_, mask),) = predict(folder, [file])
    assert (mask.shape, mask.dtype) == ((16, 16), np.uint8)
    capsys.readouterr()
    assert cli(["predict", str(folder), str(file), "--out", str(photos / "answers"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"source": str(file), "answer": str(photos / "answers" / "3.answer.png")}
    np.testing.assert_array_equal(np.asarray(Image.open(row["answer"])), mask)
    (photos / "other").mkdir()
    twin = photos / "other" / "3.png"
    twin.write_bytes(file.read_bytes())
    assert cli(["predict", str(folder), str(file), str(twin), "--out", str(photos / "answers")]) == 1
    assert "two sources would be written to" in capsys.readouterr().err
    assert cli(["predict", str(folder), str(photos / "none.png")]) == 1
    assert "none.png" in capsys.readouterr().err


@pytest.mark.parametrize("resize", ["pad", "stretch", "crop"])
def test_boxes_are_told_in_pixels_of_the_picture_itself_and_drawn_on_it(tmp_path, capsys, resize):
    shown = []
    for number, (height, width) in enumerate(((100, 220), (260, 120), (90, 90), (84, 100))):
        pixels = np.zeros((height, width, 3), np.uint8)
        box = 40, 30, width - 35, height - 20
        pixels[box[1] : box[3], box[0] : box[2]] = 255
        shown.append(Shown(f"{number}", pixels, [(1, *box)]))
    folder = voc_folder(tmp_path / "data", shown)
    data = data_of("images", folder=str(folder), size=64, resize=resize, classes=NAMES[:2], test=0.25, validation=0.25)
    if "bright_box" not in lighten.models.model_names():
        lighten.register_model("bright_box")(Bright)
    model = lighten.build_model("bright_box", num_classes=2, input_shape=data.input_shape)
    folder = saved(tmp_path / "student", data, model)
    files = [str(tmp_path / "data" / "JPEGImages" / f"{one.name}.png") for one in shown]
    for one, (_, marks) in zip(shown, predict(folder, files), strict=True):
        ((mark),) = marks
        assert (mark["label"], mark["odds"]) == (NAMES[1], pytest.approx(0.9526, abs=1e-4))
        height, width = one.pixels.shape[:2]
        cut = (max(height, width) - min(height, width)) / 2 if resize == "crop" else 0
        least = (cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut)
        expected = np.clip(one.boxes[0][1:], least[:2] * 2, least[2:] * 2)
        assert np.abs(np.array(mark["box"]) - expected).max() <= 1.02 * max(height, width) / 64
    capsys.readouterr()
    assert cli(["predict", str(folder), files[0], files[1], "--out", str(tmp_path / "out")]) == 0
    left, top, right, bottom = predict(folder, files[:1])[0].answer[0]["box"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{files[0]}: trouser (95.3 %) at {left:.0f}, {top:.0f}, {right:.0f}, {bottom:.0f}"
    drawn = np.asarray(Image.open(tmp_path / "out" / "0.answer.png"))
    assert drawn.shape == shown[0].pixels.shape
    coloured = (drawn != drawn[..., :1]).any(-1)
    assert coloured[round(bottom) - 1, round(left) + 20 : round(right) - 20].all()
    assert coloured[round(top) + 20 : round(bottom) - 5, round(left)].all()
    assert not coloured[round(top) + 20 : round(bottom) - 5, round(left) + 5 : round(right) - 5].any()
    assert cli(["predict", str(folder), files[0], "--out", str(tmp_path / "out"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["drawn"] == str(tmp_path / "out" / "0.answer.png")
    assert row["answer"][0]["box"] == [left, top, right, bottom]


def test_rows_are_answered_in_the_unit_of_the_target(tmp_path, capsys):
    rows = ["size,kind,price", *(f"{i},{'ab'[i % 2]},{1000 + 10 * i}.5" for i in range(60))]
    (tmp_path / "houses.csv").write_text("\n".join(rows))
    data = data_of("table", path=str(tmp_path / "houses.csv"), label="price", unit="EUR")
    model = lighten.build_model("table_mlp", num_classes=1, input_shape=data.input_shape, hidden=[4], embedding=2)
    folder = saved(tmp_path / "student", data, model)
    (tmp_path / "new.csv").write_text("size,kind\n3,a\n40,c\n")
    found = predict(folder, [tmp_path / "new.csv"])
    assert [source for source, _ in found] == [f"{tmp_path / 'new.csv'} row 1", f"{tmp_path / 'new.csv'} row 2"]
    assert predict(folder, [{"size": 3, "kind": "a"}])[0].answer == pytest.approx(found[0].answer, rel=1e-6)
    assert all(900 < answer < 1700 for _, answer in found)
    batch = next(iter(data.test_dataloader()))
    labels = task_of(data.task).restored(batch.pop("labels"))[:, 0]
    sizes = [(round(float(label)) - 1000) // 10 for label in labels]
    with torch.no_grad():
        expected = task_of(data.task).restored(model(**batch))[:, 0]
    again = predict(folder, [{"size": size, "kind": "ab"[size % 2]} for size in sizes])
    assert [answer for _, answer in again] == pytest.approx(expected.tolist(), rel=1e-6)


def test_what_cannot_be_predicted_is_one_line(tmp_path):
    folder = lighten.save(lighten.build_model("cnn", num_classes=2, input_shape=(1, 8, 8), widths=[4]), tmp_path / "m")
    with pytest.raises(UserError, match="its data, unnamed, do not say how a file becomes an input"):
        predict(folder, ["x.png"])
    with pytest.raises(UserError, match="nothing to predict"):
        predict(folder, [])
