import json

import lightning as L
import pytest
import torch
from detector_configs import DETECTORS, VITPOSE
from torch.utils.data import DataLoader, TensorDataset

import lighten
from lighten.delivery.folders.model import cut
from lighten.errors import UserError
from lighten.models import build_model
from lighten.models.detector import by_image, independent
from lighten.utils.compression import record_of

CLASSES = 3
SHAPE = (1, 32, 32)
LABELS = torch.tensor(
    [
        [[2, 0.5, 0.5, 0.4, 0.2], [0, 0.2, 0.3, 0.1, 0.1], [-1, 0, 0, 0, 0]],
        [[-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]],
        [[1, 0.6, 0.4, 0.3, 0.3], [-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]],
    ]
)


def network(config, shape=SHAPE, **options):
    torch.manual_seed(0)
    return build_model(
        "transformers", num_classes=CLASSES, input_shape=shape, config=config, head="detection", **options
    )


@pytest.fixture(params=DETECTORS)
def family(request):
    return request.param


def test_independent_odds_are_those_of_the_softmax():
    torch.manual_seed(0)
    logits = 8 * torch.randn(50, 7, dtype=torch.float64)
    logits[0] = 0  # all alike
    logits[1, 2] = logits[1, 5] = 40  # two alike, others far below
    logits[2, 1] = 30  # one is nearly sure
    logits[3, 6] = 30  # nothing is nearly sure
    odds = logits.softmax(-1)
    found = independent(logits)
    torch.testing.assert_close(found.sigmoid(), odds[:, :-1], rtol=1e-9, atol=0)
    exact = odds.log() - (1 - odds).log()
    plain = (odds < 0.99).all(1)
    torch.testing.assert_close(found[plain], exact[plain][:, :-1])
    # what float64 can tell where the odds themselves are rounded to one
    torch.testing.assert_close(found[2, 1], 30 - torch.cat([logits[2, :1], logits[2, 2:]]).logsumexp(0))
    single = independent(logits.float())
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=1e-4)


def test_independent_odds_have_gradients_everywhere():
    logits = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], requires_grad=True)
    found = independent(logits)
    assert found.isfinite().all()
    found.sum().backward()
    assert logits.grad.isfinite().all()
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(independent, torch.randn(4, 5, dtype=torch.float64, requires_grad=True))


def test_rows_without_a_box_are_left_out():
    found = by_image(LABELS)
    assert [each["class_labels"].tolist() for each in found] == [[2, 0], [], [1]]
    assert [tuple(each["boxes"].shape) for each in found] == [(2, 4), (0, 4), (1, 4)]
    assert torch.equal(found[2]["boxes"][0], LABELS[2, 0, 1:])


def test_a_detector_answers_with_one_tensor(family):
    model = network(DETECTORS[family]).eval()
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        found, theirs = model(x), model.network(x)
    assert found.shape == (2, 6, 4 + CLASSES)
    assert torch.equal(found[..., :4], theirs.pred_boxes)
    odds = theirs.logits.sigmoid() if theirs.logits.shape[-1] == CLASSES else theirs.logits.softmax(-1)[..., :-1]
    torch.testing.assert_close(found[..., 4:].sigmoid(), odds, rtol=1e-5, atol=1e-7)
    assert found[..., :4].min() > 0
    assert found[..., :4].max() < 1


def test_its_own_loss_is_returned_with_labels(family):
    model = network(DETECTORS[family])
    x = torch.randn(3, *SHAPE)
    torch.manual_seed(1)
    found = model(x, LABELS)
    torch.manual_seed(1)
    theirs = model.network(x, labels=by_image(LABELS)).loss
    torch.testing.assert_close(found.loss, theirs, rtol=1e-5, atol=1e-5)
    assert found.loss.isfinite()
    assert found.loss > 0
    # queries that are there for that loss alone are no answers
    assert found.logits.shape == model(x).shape == (3, 6, 4 + CLASSES)
    found.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_it_learns_by_its_own_loss():
    model, images = network(DETECTORS["conditional_detr"] | {"dropout": 0.0}), torch.randn(3, *SHAPE)
    module = lighten.DistillationModule(
        model, None, soft_weight=0.0, task="detection", losses={"own": 1.0}, num_classes=CLASSES
    )
    with torch.no_grad():
        expected = model(images, LABELS).loss
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = DataLoader(TensorDataset(images, LABELS), batch_size=3)
    trainer.fit(module, batches, batches)
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], expected, rtol=1e-5, atol=1e-5)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_built_again_from_its_record(family):
    model = network(DETECTORS[family], (1, 64, 64)).eval()
    spec = json.loads(json.dumps(record_of(model).spec))
    again = build_model(spec["name"], num_classes=CLASSES, input_shape=spec["input_shape"], **spec["options"]).eval()
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_weights_come_from_a_path_with_other_classes_too(family, tmp_path):
    model = network(DETECTORS[family]).eval()
    model.network.save_pretrained(tmp_path)
    x = torch.randn(2, *SHAPE)
    loaded = build_model("transformers", num_classes=CLASSES, input_shape=SHAPE, path=str(tmp_path), head="detection")
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(x), model(x), rtol=0, atol=1e-6)
    other = build_model("transformers", num_classes=5, input_shape=SHAPE, path=str(tmp_path), head="detection")
    assert other(x).shape == (2, 6, 9)
    spec = record_of(loaded).spec["options"]
    assert set(spec) == {"config", "head"}


def test_a_detector_is_pruned_saved_and_loaded(tmp_path):
    model, x = network(DETECTORS["conditional_detr"]).eval(), torch.randn(2, *SHAPE)
    plan = lighten.plan_pruning(model, x, 0.5)
    small = cut(model, plan).eval()
    lighten.mask_(model, plan)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-5)
        loaded = lighten.load(lighten.save(small, tmp_path / "small"))
        assert torch.equal(loaded(x), small(x))
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


def test_a_backbone_that_cannot_read_the_images_is_told():
    config = DETECTORS["rf_detr"]
    with pytest.raises(UserError, match=r"config of 'rf_detr' cannot read images of 1 × 30 × 30") as caught:
        network(config, (1, 30, 30))
    assert "\n" not in str(caught.value)


def test_heat_maps_of_points():
    torch.manual_seed(0)
    model = build_model("transformers", num_classes=4, input_shape=(1, 32, 48), config=VITPOSE, head="keypoints").eval()
    x = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        found = model(x)
        assert found.shape == (2, 4, 16, 24)
        assert torch.equal(found, model.network(x).heatmaps)
        spec = json.loads(json.dumps(record_of(model).spec))
        again = build_model(spec["name"], num_classes=4, input_shape=spec["input_shape"], **spec["options"]).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(x), found)


def test_heads_at_places_need_images():
    with pytest.raises(UserError, match=r"head='detection' is for images, the data's inputs are \(10,\)"):
        network({"model_type": "detr"}, (10,))
