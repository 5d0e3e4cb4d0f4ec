"""Layers that are compared: which, projected how, and hooks that are off again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from distillation_nets import bert, images, resnet, texts
from torch import nn
from torch.utils.data import DataLoader

from lighten.distillation.layers import MatchedLayers, matches_of, projection_name, restore_projections_
from lighten.distillation.match import FeatureRecorder, Match, Projection
from lighten.distillation.module import DistillationModule
from lighten.distillation.teacher import Teacher, fingerprint
from lighten.errors import UserError
from lighten.training.checkpoint import AtomicCheckpointIO
from lighten.training.optimizer import OptimizerSettings

HINTED = {"soft_labels": 1.0, "hint": 1.0}


def test_hints_project_the_student_to_its_teachers_width(fit, tmp_path) -> None:
    student, teacher = resnet(4), resnet(8, blocks=2)
    module = DistillationModule(student, teacher, losses={"soft_labels": 1.0, "hint": 2.0, "attention_transfer": 5.0})
    before = fingerprint(teacher)
    trainer = fit(module, images(), max_epochs=2)
    assert {name: tuple(p.weight.shape) for name, p in module.projections.items()} == {
        f"stage{s}_0->stage{s}_1": (8 * 2 ** (s - 1), 4 * 2 ** (s - 1)) for s in (1, 2, 3)
    }
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters()}
    assert fingerprint(teacher) == before
    metrics = trainer.callback_metrics
    shares = [float(metrics[f"distil/share/{name}"]) for name in ("soft_labels", "hint", "attention_transfer")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    expected = 2 * metrics["distil/hint"] / metrics["train/loss"]
    assert shares[1] == pytest.approx(float(expected), rel=1e-5)
    path = next((tmp_path / "checkpoints").glob("last-*.ckpt"))
    state = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"student", "projections"}
    assert not student._forward_hooks
    assert not any(m._forward_hooks for m in [*student.modules(), *teacher.modules()])


def test_a_hint_teaches_the_layer_that_it_names(fit) -> None:
    student, teacher = resnet(8), resnet(8)
    batch = next(iter(images()))[0]

    def distance() -> float:
        found = []
        for model in (student, teacher):
            watch = FeatureRecorder(model.eval(), ["stage1"])
            with torch.no_grad():
                model(batch)
            found.append(watch.take()["stage1"])
            watch.close()
        return float(F.mse_loss(*found))

    before = distance()
    module = DistillationModule(
        student.train(),
        teacher,
        losses={"hint": 1.0},
        layers={"stage1": "stage1"},
        optimizer=OptimizerSettings(lr=0.01, weight_decay=0.1, warmup=0.0, schedule="constant"),
    )
    head = student.head.weight.detach().clone()
    fit(module, images(), max_epochs=20)
    assert distance() < 0.6 * before
    decayed = head * (1 - 0.01 * 0.1) ** (20 * 3)  # by AdamW, in each step
    torch.testing.assert_close(student.head.weight.detach(), decayed)


def test_texts_compare_tokens_that_are_no_padding(fit) -> None:
    student, teacher = bert(1), bert(2)
    losses = {"soft_labels": 5.0, "cross_entropy": 2.0, "hidden_cosine": 1.0, "relations": 1.0}
    module = DistillationModule(
        student, teacher, temperature=2.0, losses=losses, loss_options={"relations": {"heads": 4}}
    )
    assert [(m.student, m.teacher) for m in module.layers.matches["hidden_cosine"]] == [
        ("bert.encoder.layer.0", "bert.encoder.layer.1")
    ]
    assert [m.student.rpartition(".")[2] for m in module.layers.matches["relations"]] == ["query", "key", "value"]
    trainer = fit(module, texts())
    assert all(trainer.callback_metrics[f"distil/{name}"].isfinite() for name in losses)

    batch = next(iter(texts()))
    seen = {}
    handles = [
        model.bert.encoder.layer[-1].register_forward_hook(
            lambda m, a, out, k=k: seen.update({k: out if isinstance(out, torch.Tensor) else out[0]})
        )
        for k, model in (("s", student.eval()), ("t", teacher))
    ]
    module.log = module.log_dict = lambda *a, **k: None
    noted = {}
    module._log_step = lambda loss, losses: noted.update({name: value for name, (_, value) in losses.items()})
    module.setup("fit")
    module.training_step(batch, 0)
    cosine = F.cosine_similarity(seen["s"], seen["t"], dim=-1)[batch["attention_mask"].bool()]
    torch.testing.assert_close(noted["hidden_cosine"], 1 - cosine.mean())
    for handle in handles:
        handle.remove()


def test_layers_of_unequal_resolution_name_both_sides_before_the_first_step(fit) -> None:
    module = DistillationModule(resnet(4), resnet(4), losses={"hint": 1.0}, layers={"stage1": "stage3"})
    with pytest.raises(UserError, match=r"hint: the student's 'stage1' gives .* the teacher's 'stage3' .*only widths"):
        fit(module, images())


def test_a_checkpoint_with_projections_loads_outside_of_a_fit(fit, tmp_path) -> None:
    module = DistillationModule(resnet(4), resnet(8), losses=HINTED)
    trainer = fit(module, images())
    path = next((tmp_path / "checkpoints").glob("last-*.ckpt"))
    loaded = DistillationModule.load_from_checkpoint(path, student=resnet(4), teacher=module.teacher.module)
    assert set(loaded.state_dict()) == set(module.state_dict())
    for name, weight in loaded.projections.state_dict().items():
        assert torch.equal(weight, module.projections.state_dict()[name])
    fresh = DistillationModule(resnet(4), module.teacher.module, losses=HINTED)
    found = trainer.test(fresh, images(), ckpt_path=path, verbose=False)[0]
    assert "student/accuracy" in found


def test_what_projections_have_learned_outlives_a_second_fit(fit, tmp_path) -> None:
    module = DistillationModule(resnet(4), resnet(8), losses=HINTED)
    fit(module, images(), enable_checkpointing=False)
    before = {name: p.detach().clone() for name, p in module.projections.named_parameters()}
    module.optimizer = OptimizerSettings(lr=1e-12, weight_decay=0.0)
    fit(module, images(), enable_checkpointing=False)
    for name, weight in module.projections.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=1e-9)


def test_frozen_parts_of_the_student_keep_their_mode(fit) -> None:
    student = resnet(4)
    norm = next(m for m in student.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    module = DistillationModule(student, resnet(8), losses=HINTED)
    module.layers.open(((next(iter(images()))[0],), {}))
    assert not norm.training
    assert student.training
    module.layers.close()


def test_hooks_are_off_after_a_failure_and_the_next_fit_is_whole(fit) -> None:
    module = DistillationModule(resnet(4), resnet(8), losses=HINTED)
    with pytest.raises(UserError, match="could not be run on the first batch"):
        fit(module, DataLoader([(torch.randn(3), 0)] * 8, 4), enable_checkpointing=False)
    assert not any(m._forward_hooks for m in module.modules())

    class Failing(DistillationModule):
        def on_train_batch_end(self, *args) -> None:
            raise ValueError("in the middle")

    broken = Failing(resnet(4), resnet(8), losses=HINTED)
    with pytest.raises(ValueError, match="in the middle"):
        fit(broken, images(), enable_checkpointing=False)
    assert not any(m._forward_hooks for m in [*broken.modules(), *broken.teacher.module.modules()])
    copy.deepcopy(broken)
    fit(module, images(), enable_checkpointing=False)
    assert len(module.projections) == 3


def plain(*widths: int) -> nn.Sequential:
    """Blocks of a convolution and a norm each, and dropout."""
    pairs = zip((3, *widths), widths, strict=False)
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.Conv2d(b, b, 1)) for a, b in pairs),
        nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4),
    )  # fmt: skip


CALL = ((torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4),), {})


def recording(*losses: str, student: nn.Module, teacher: nn.Module) -> MatchedLayers:
    return MatchedLayers(matches_of(losses, "uniform", student, teacher), student, Teacher(teacher), nn.ModuleDict())


def run_both(layers: MatchedLayers) -> None:
    layers.student(*CALL[0])
    layers.teacher.logits(CALL, torch.device("cpu"))


def test_each_loss_has_its_own_layers() -> None:
    student, teacher = bert(2), bert(4)
    found = matches_of(["hint", "hidden_cosine", "relations"], "uniform", student, teacher)
    layer = "bert.encoder.layer"
    pairs = [Match(f"{layer}.0", f"{layer}.1"), Match(f"{layer}.1", f"{layer}.3")]
    assert found["hint"] == pairs
    assert found["hidden_cosine"] == pairs[1:]
    inner = [f"attention.self.{kind}" for kind in ("query", "key", "value")]
    assert found["relations"] == [Match(f"{layer}.1.{name}", f"{layer}.3.{name}") for name in inner]
    named = {f"{layer}.[01]": f"{layer}.[02]"}
    assert len(matches_of(["hidden_cosine"], named, student, teacher)["hidden_cosine"]) == 2, "all that are named"
    assert matches_of([], "uniform", nn.Linear(1, 1), nn.Linear(1, 1)) == {}


def test_pairs_are_the_outputs_of_both_the_students_projected_where_values_are_compared() -> None:
    student, teacher = plain(2, 4), plain(5, 4)
    layers = recording("hint", "attention_transfer", student=student, teacher=teacher)
    assert layers.pairs() == {}, "nothing is recorded yet"
    layers.open(CALL)
    assert [(name, tuple(p.weight.shape)) for name, p in layers.projections.items()] == [("0->0", (5, 2))]
    student.eval()
    run_both(layers)
    found = layers.pairs()
    ours, theirs = student[0](*CALL[0]), teacher[0](*CALL[0])
    (hinted, _), (seen, of_teacher) = found["hint"][0], found["attention_transfer"][0]
    assert torch.equal(seen, ours)
    assert torch.equal(of_teacher, theirs)
    torch.testing.assert_close(hinted, torch.einsum("oc,nchw->nohw", layers.projections["0->0"].weight, ours))
    assert torch.equal(found["hint"][1][0], student[1](ours)), "equal widths need no projection"
    unprojected = recording("attention_transfer", student=student, teacher=teacher)
    unprojected.open(CALL)
    assert not unprojected.projections


def test_opening_leaves_modes_and_buffers_as_they_were_and_draws_for_projections_alone() -> None:
    student, teacher = plain(2, 4), plain(5, 4)
    student[0][1].eval()
    modes = [m.training for m in student.modules()]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with torch.random.fork_rng():
        drawn = nn.Linear(2, 5, bias=False).weight
        after = torch.get_rng_state()
    layers = recording("hint", student=student, teacher=teacher)
    layers.open(CALL)
    assert torch.equal(layers.projections["0->0"].weight, drawn)
    assert [m.training for m in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)


def test_a_projection_is_kept_unless_it_has_another_shape() -> None:
    student, teacher = plain(2, 3), plain(5, 6)
    layers = recording("hint", student=student, teacher=teacher)
    fitting, other = Projection(2, 5, bias=False), Projection(7, 6, bias=False)
    layers.projections.update({"0->0": fitting, "1->1": other})
    layers.open(CALL)
    layers.open(CALL)
    assert layers.projections["0->0"] is fitting
    assert layers.projections["1->1"].weight.shape == (6, 3)


def test_what_was_recorded_can_be_forgotten_and_recording_stopped() -> None:
    student, teacher = plain(4), plain(4)
    layers = recording("attention_transfer", student=student, teacher=teacher)
    layers.open(CALL)
    assert layers.opened
    run_both(layers)
    layers.forget()
    with pytest.raises(KeyError):
        layers.pairs()
    layers.close()
    run_both(layers)
    assert not layers.opened
    assert layers.pairs() == {}
    assert not any(m._forward_hooks for model in (student, teacher) for m in model.modules())


def test_layers_that_do_not_fit_leave_no_hooks() -> None:
    student, teacher = plain(4), plain(4)
    teacher[0].append(nn.MaxPool2d(2))
    layers = recording("hint", student=student, teacher=teacher)
    with pytest.raises(UserError, match=r"the student's '0' gives \(2, 4, 4, 4\), the teacher's '0' \(2, 4, 2, 2\)"):
        layers.open(CALL)
    assert not layers.opened
    assert student.training
    assert not any(m._forward_hooks for model in (student, teacher) for m in model.modules())


def test_a_student_without_weights_is_refused() -> None:
    with torch.device("meta"):
        student = plain(4)
    with pytest.raises(UserError, match="hint, attention_transfer compare layers, and the student has no weights yet"):
        recording("hint", "attention_transfer", student=student, teacher=plain(4)).open(CALL)


def test_projections_are_made_as_a_checkpoint_holds_them() -> None:
    there = Projection(1, 1, bias=False)
    projections = nn.ModuleDict({"a->b": there})
    weight = torch.arange(6, dtype=torch.float64).view(3, 2)
    state = {"projections.a->b.weight": weight, "projections.c->d.weight": weight, "student.e.weight": weight}
    restore_projections_(projections, state)
    assert set(projections) == {"a->b", "c->d"}
    assert projections["a->b"] is there
    made = projections["c->d"]
    assert (made.weight.shape, made.weight.dtype, made.bias) == ((3, 2), torch.float64, None)
    assert projection_name(Match("stage1.0", "stage1.1")) == "stage1_0->stage1_1"
