import json
import math

import pytest
import torch

import lighten
from lighten.errors import UserError
from lighten.models import build_model
from lighten.models.torchvision_detection import _centred, one_stage
from lighten.tasks.boxes import edges
from lighten.utils.compression import record_of

SMALL = "ssdlite320_mobilenet_v3_large"
CLASSES = 3


def network(name, shape=(3, 64, 96)):
    torch.manual_seed(0)
    return build_model("torchvision", num_classes=CLASSES, input_shape=shape, name=name).eval()


def theirs(model, x, monkeypatch):
    """What the library's own forward makes of images: all of its boxes, the likeliest first."""
    from torchvision.models.detection import fcos, retinanet, ssd
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    for module in (fcos, retinanet, ssd):
        monkeypatch.setattr(module.box_ops, "batched_nms", lambda b, scores, *_: scores.argsort(descending=True))
    model.score_thresh, model.topk_candidates, model.detections_per_img = -1.0, 10**6, 10**6
    size = tuple(x.shape[2:])
    model.transform = GeneralizedRCNNTransform(
        min(size), max(size), [0.0] * 3, [1.0] * 3, size_divisible=1, fixed_size=size[::-1]
    )
    return model(list(x))


@pytest.mark.parametrize("name", [SMALL, "fcos_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_boxes_and_odds_are_the_librarys_before_any_is_left_out(vision, name, monkeypatch):
    model, x = network(name), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = model(x)
        expected = theirs(model.network, x, monkeypatch)
    shift = 1 if name == SMALL else 0
    for ours, their in zip(found, expected, strict=True):
        odds = ours[:, 4:].sigmoid()
        torch.testing.assert_close(odds.flatten().sort(descending=True)[0], their["scores"], rtol=1e-4, atol=1e-6)
        boxes = edges(ours[:, :4]).clamp(0, 1) * torch.tensor([96, 64, 96, 64])
        for row in range(0, 40, 8):
            likely = their["scores"][row]
            label, box = int(their["labels"][row]) - shift, their["boxes"][row]
            gap = (odds[:, label] - likely).abs() + (boxes - box).abs().amax(1)
            assert gap.min() < 1e-3


def test_odds_of_class_and_centre_stay_finite():
    values = torch.tensor([-200.0, -3.0, 0.0, 3.0, 200.0], requires_grad=True)
    found = _centred(values[:, None], values[None])
    assert found.isfinite().all()
    found.sum().backward()
    assert values.grad.isfinite().all()
    odds = math.sqrt(1 / (1 + math.exp(3)) * 0.5)
    assert found[1, 2].item() == pytest.approx(math.log(odds / (1 - odds)), rel=1e-5)


def test_one_is_built_again_and_pruned_as_it_is_masked(vision):
    model, x = network(SMALL, (1, 64, 64)), torch.randn(2, 1, 64, 64)
    spec = json.loads(json.dumps(record_of(model).spec))
    again = build_model(
        spec["name"], num_classes=CLASSES, input_shape=spec["input_shape"], **spec["options"]
    ).eval()  # fmt: skip
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        plan = lighten.plan_pruning(model, x, 0.3)
        small = lighten.shrink(model, plan).eval()
        lighten.mask_(model, plan)
        torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


def test_detectors_of_two_stages_are_no_choice(vision):
    import torchvision

    found = one_stage(torchvision.models)
    assert {SMALL, "fcos_resnet50_fpn", "retinanet_resnet50_fpn", "ssd300_vgg16"} <= set(found)
    assert not [name for name in found if "rcnn" in name]
    with pytest.raises(UserError, match="'fasterrcnn_mobilenet_v3_large_320_fpn' is unknown"):
        network("fasterrcnn_mobilenet_v3_large_320_fpn")
