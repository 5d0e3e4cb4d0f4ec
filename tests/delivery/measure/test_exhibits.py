"""What a report is to show of boxes: marks on the inputs, of the worst samples and of those in the middle."""

import base64
import io
import json

import numpy as np
import torch
from box_nets import Bright
from PIL import Image

from lighten.delivery.measure.exhibits import write_pictures
from lighten.tasks import build_task


class Runner:
    def __init__(self, model):
        self.model = model

    def feed(self, call):
        return call

    def run(self, call):
        return self.model(*call[0]).numpy()


def test_boxes_are_marks_on_the_input(tmp_path):
    images = torch.zeros(10, 1, 32, 48)
    labels = torch.full((10, 2, 5), -1.0)
    labels[..., 1:] = 0
    for n, image in enumerate(images):
        image[:, 4 : 12 + n, 6:30] = 1.0
        labels[n, 1] = torch.tensor([1, 18 / 48, (16 + n) / 2 / 32, 24 / 48, (8 + n) / 32])
    batches = [(images[:6], labels[:6]), (images[6:], labels[6:])]
    model = Bright(2, (1, 32, 48), level=0.5)
    scores = np.arange(10)[::-1].astype(float)
    with torch.no_grad():
        path = write_pictures(
            tmp_path,
            build_task("detection"),
            {"compressed": Runner(model)},
            batches,
            scores,
            ["hat", "bag"],
            lambda x: x,
        )
    found = json.loads(path.read_text())
    assert found["classes"] == ["hat", "bag"]
    assert [(row["sample"], row["rank"]) for row in found["samples"]] == [
        (9, "worst"), (8, "worst"), (7, "worst"), (5, "median"), (4, "median"), (3, "median"),
    ]  # fmt: skip
    for row in found["samples"]:
        n = row["sample"]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["input"]))))
        assert np.array_equal(pixels[..., 0], images[n, 0].mul(255).byte().numpy())
        assert row["size"] == [48, 32]
        box = [6 / 48, 4 / 32, 30 / 48, (12 + n) / 32]
        for role, odds in (("truth", None), ("compressed", 1 / (1 + np.exp(-3)))):
            (mark,) = row[role]
            assert np.allclose(mark["box"], box, atol=1e-6)
            assert mark["label"] == "bag"
            assert mark["odds"] is None if odds is None else abs(mark["odds"] - odds) < 1e-6
