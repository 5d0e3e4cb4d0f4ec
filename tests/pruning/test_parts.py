"""Networks that cannot be traced whole: the part that can be is named, cut, and fits where it was."""

import copy

import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning import mask_, plan_pruning, shrink
from lighten.pruning.check import distance
from lighten.utils.inputs import leaves_of


class Backbone(nn.Module):
    """A pyramid of one level, as the detectors of torchvision take them."""

    def __init__(self):
        super().__init__()
        self.out_channels = 32
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 800, 3, 4, 1), nn.ReLU()
        )
        self.lateral = nn.Conv2d(800, 32, 1)

    def forward(self, x):
        return {"0": self.lateral(self.layers(x))}


class Chosen(nn.Module):
    """Puts out as many rows as are chosen by value."""

    def __init__(self, *, nested):
        super().__init__()
        inner = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6))
        self.body = Filtered(inner) if nested else inner
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        rows = self.head(self.body(x))
        return rows[rows[:, 0] > 0]


class Filtered(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[x[:, 0] > 0]


@pytest.mark.parametrize(("nested", "part"), [(False, "body"), (True, "body.inner")])
def test_the_part_that_can_be_traced_is_named(nested, part):
    said = rf"prune a part of the model that does without: its {part}, by plan_pruning\(model.{part}, …\) or "
    with pytest.raises(UserError, match=said + rf"Prune\(…, module='{part}'\)"):
        plan_pruning(Chosen(nested=nested), torch.randn(4, 5), 0.5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_scripted_part_is_no_part():
    """TorchScript's modules take no hooks, and cannot be exported."""
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    model = nn.Sequential(scripted, nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))
    with pytest.raises(
        UserError, match=r"torch.export cannot trace Sequential: .*: its 1, by plan_pruning\(model"
    ) as info:
        plan_pruning(model, torch.randn(2, 8), 0.5)
    assert len(str(info.value).splitlines()) == 1


def test_where_no_part_can_be_traced_none_is_named():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x):
            return self.layer(x[x[:, 0] > 0])

    with pytest.raises(UserError, match=r"prune a part of the model that does without$"):
        plan_pruning(Alone(), torch.randn(4, 5), 0.5)


def test_what_is_wrong_with_the_settings_is_not_put_on_a_part():
    with pytest.raises(UserError, match="nothing") as caught:
        plan_pruning(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2)), torch.randn(2, 5), 0.5, exclude=["nothing"])
    assert "plan_pruning(" not in str(caught.value)


def detector(torchvision, kind):
    found = torchvision.models.detection
    anchors = found.anchor_utils.AnchorGenerator(((32,),), ((1.0,),))
    sizes = {"min_size": 64, "max_size": 64}
    if kind == "ssd":
        boxes = found.anchor_utils.DefaultBoxGenerator([[2]])
        head = found.ssd.SSDHead([32], boxes.num_anchors_per_location(), 3)
        return found.ssd.SSD(Backbone(), boxes, (64, 64), 3, head=head)
    if kind in ("fcos", "retinanet"):
        made = found.FCOS if kind == "fcos" else found.RetinaNet
        return made(Backbone(), anchor_generator=anchors, num_classes=3, score_thresh=0.0, **sizes)
    pool = torchvision.ops.MultiScaleRoIAlign(["0"], 2, 2)
    boxes = found.faster_rcnn.TwoMLPHead(32 * 4, 8), found.faster_rcnn.FastRCNNPredictor(8, 3)
    options = {
        "rpn_anchor_generator": anchors, "box_roi_pool": pool, "box_head": boxes[0], "box_predictor": boxes[1],
        "rpn_post_nms_top_n_test": 5,
    }  # fmt: skip
    if kind == "fasterrcnn":
        return found.FasterRCNN(Backbone(), **sizes, **options)
    points = found.keypoint_rcnn
    options |= {"keypoint_roi_pool": pool, "keypoint_head": points.KeypointRCNNHeads(32, (8,))}
    return found.KeypointRCNN(Backbone(), keypoint_predictor=points.KeypointRCNNPredictor(8, 2), **sizes, **options)


@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet", "fcos", "ssd", "keypointrcnn"])
def test_the_backbone_of_a_detector_is_cut_and_the_rest_takes_what_it_puts_out(torchvision, kind):
    torch.manual_seed(0)
    model = detector(torchvision, kind).eval()
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 64)]
    with pytest.raises(UserError, match=r"its backbone, by plan_pruning\(model.backbone, …\) or Prune"):
        plan_pruning(model, (images,), 0.5)
    plan = plan_pruning(model.backbone, torch.rand(2, 3, 64, 64), 0.5)
    assert (plan.widths["layers.0"], plan.widths["layers.3"]) == ((16, 8), (800, 400))
    assert plan.widths["lateral"] == (32, 32)
    masked, cut = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    mask_(masked.backbone, plan)
    cut.backbone = shrink(cut.backbone, plan)
    images = [image.double() for image in images]
    with torch.no_grad():
        one, other = (leaves_of(net(images)) for net in (masked, cut))
    assert sum(len(value) for value in one) > 0
    assert distance(one, other) < 1e-10
