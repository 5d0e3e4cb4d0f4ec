"""Fits on a real GPU: ``pytest -m cuda``. Each looks at what differs there: precision, NCCL, where tensors lie."""

import copy
import hashlib
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lighten import (
    DistillationModule,
    Prune,
    Quantize,
    build_data,
    build_model,
    calibrate_,
    export_onnx,
    load,
    mask_,
    measure,
    plan_pruning,
    quantize_,
    quantize_post_training,
    save,
    shrink,
)
from lighten.delivery.measure.measure import predict
from lighten.distillation.cache import TeacherCache
from lighten.pruning.score import fpgm, magnitude
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.integer_layers import convert
from lighten.quantization.observe import RULES
from lighten.training.fit import leave_processes, make_trainer
from lighten.training.optimizer import OptimizerSettings
from lighten.training.record import read

pytestmark = pytest.mark.cuda
BATCH = 128


@pytest.fixture
def data():
    data = build_data("fashion_mnist", batch_size=BATCH, seed=0, workers=0)
    data.setup("fit")
    return data


def network(width=16, seed=0):
    torch.manual_seed(seed)
    model = build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=width, blocks=1, stem_stride=2)
    return model.to(memory_format=torch.channels_last)


def module_of(**options):
    options = {"optimizer": OptimizerSettings(name="sgd", lr=0.05), "num_classes": 10, **options}
    return DistillationModule(network(), network(24, seed=1), temperature=4.0, soft_weight=0.5, **options)


def fit(module, data, folder, *callbacks, **settings):
    given = {"accelerator": "gpu", "devices": 1, "max_epochs": 2, "limit_train_batches": 20, "limit_val_batches": 2,
             "gradient_clip_val": 1.0, "enable_progress_bar": False, **settings}  # fmt: skip
    trainer = make_trainer(folder=folder, stage="student", settings=given, callbacks=callbacks)
    trainer.fit(module, data)
    return trainer


def both():
    return Prune(0.5, score="fpgm", begin=0.1, end=0.4), Quantize(begin=0.5, freeze=0.9)


def hash_of(module):
    state = {k: v.cpu() for k, v in module.state_dict().items()}
    return hashlib.sha256(b"".join(k.encode() + v.contiguous().numpy().tobytes() for k, v in state.items())).hexdigest()


def images_of(data, count=512):
    return torch.cat([batch[0] for batch in data.test_dataloader()])[:count]


def answers(model, images):
    return predict(model, [(images, torch.zeros(len(images)).long())], threads=1)[0].argmax(1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_distilled_pruned_and_quantized_in_one_fit_and_the_file_agrees(precision, data, tmp_path):
    module, (prune, quantize) = module_of(), both()
    trainer = fit(module, data, tmp_path, prune, quantize, precision=precision)
    assert trainer.global_step == 40
    losses = [row["train/loss"] for row in read(tmp_path / "history.jsonl") if "train/loss" in row]
    assert losses
    assert np.isfinite(losses).all()
    student = module.student
    assert quantizers_of(student).stage == Stage.ON
    small = shrink(student, prune.plan)
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in network().parameters())
    path = export_onnx(small.cpu().eval(), images_of(data, 2), tmp_path / "student.onnx")
    images = images_of(data)
    with torch.no_grad():
        expected = small(images).argmax(1).numpy()
    found = answers(path, images)
    assert (found != expected).sum() <= 1
    device = small.cuda()
    with torch.no_grad():  # what kernels compute is what tensor operations do on the CPU
        flips = (device(images.cuda()).argmax(1).cpu().numpy() != expected).sum()
    assert flips <= 2


def test_one_rank_over_nccl_is_no_rank_bit_by_bit(data, tmp_path):
    seen = []
    for strategy in ("auto", "ddp"):
        torch.manual_seed(0)
        module = module_of()
        fit(module, data, tmp_path / strategy, *both(), strategy=strategy, precision="32-true", deterministic=True)
        if strategy == "ddp":
            assert torch.distributed.get_backend() == "nccl"
            leave_processes()
        seen.append(hash_of(module.student))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_resumed_fit_ends_with_the_same_bits(precision, data, tmp_path):
    ends = []
    for stop in (None, 25):
        torch.manual_seed(0)
        module, folder = module_of(), tmp_path / str(stop)
        settings = {"precision": precision, "deterministic": True}
        if stop is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit(module, data, folder, *both(), StopAt(stop), **settings)
            torch.manual_seed(1)
            module = module_of()
        given = {"accelerator": "gpu", "devices": 1, "max_epochs": 2, "limit_train_batches": 20, "limit_val_batches": 2,
                 "gradient_clip_val": 1.0, "enable_progress_bar": False, **settings}  # fmt: skip
        trainer = make_trainer(folder=folder, stage="student", settings=given, callbacks=both())
        last = folder / "stopped.ckpt" if stop is not None else None
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
        assert trainer.global_step == 40
        ends.append(hash_of(module.student))
    assert ends[0] == ends[1]


class StopAt(L.Callback):
    """Saves after some steps, and ends the fit there."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/stopped.ckpt")
            trainer.should_stop = True
            trainer.limit_val_batches = 0


def test_float16_leaves_an_overflow_to_the_scaler(data, tmp_path):
    """A loss scaled 2^40 times overflows at first; the scaler halves that until it fits, and no step is lost to us."""
    module = module_of()
    trainer = make_trainer(
        folder=tmp_path, stage="student",
        settings={"accelerator": "gpu", "devices": 1, "max_steps": 60, "limit_val_batches": 0, "precision": "16-mixed",
                  "enable_progress_bar": False},
    )  # fmt: skip
    trainer.precision_plugin.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    before = copy.deepcopy(module.student.state_dict())
    trainer.fit(module, data)
    assert trainer.precision_plugin.scaler.get_scale() < 2.0**40
    assert any(not torch.equal(v, before[k]) for k, v in module.student.state_dict().items() if "weight" in k)


@pytest.mark.parametrize("score", [fpgm, magnitude])
def test_scores_are_those_of_the_cpu(score):
    weight = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(score(weight.cuda()).cpu(), score(weight), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"score": "taylor"},
        {"score": "auto"},
        {"score": "random"},
        {"scope": "global"},
        {"scope": "sensitivity"},
        {"soft": True},
    ],
    ids=str,
)
def test_every_way_to_decide(settings, data, tmp_path):
    module, prune = module_of(), Prune(0.5, begin=0.1, end=0.6, **settings)
    fit(module, data, tmp_path, prune, precision="bf16-mixed")
    assert 0.2 < prune.plan.sparsity < 0.8
    small = shrink(module.student, prune.plan)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.student.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_ranges_are_those_of_the_cpu(rule, data, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    near = {"mse": 0.05, "lsq": 0.05, "entropy": 0.2}.get(rule, 1e-3)  # others are nearly as good
    images = images_of(data).split(128)
    model = network().eval()
    here = calibrate_(quantize_(copy.deepcopy(model), example_input=images[0][:2], ranges=rule), images)
    there = copy.deepcopy(model).cuda()
    on_gpu = [batch.cuda() for batch in images]
    quantize_(there, example_input=on_gpu[0][:2], ranges=rule)
    calibrate_(there, on_gpu)
    torch.testing.assert_close(quantizers_of(there).low.cpu(), quantizers_of(here).low, rtol=near, atol=1e-3)
    torch.testing.assert_close(quantizers_of(there).high.cpu(), quantizers_of(here).high, rtol=near, atol=1e-3)


def test_ranges_learn_on_the_gpu(data, tmp_path):
    module = module_of()
    fit(module, data, tmp_path, Quantize(begin=0.1, ranges="lsq"), precision="bf16-mixed")
    quantizers = quantizers_of(module.student)
    assert quantizers.stage == Stage.ON
    assert torch.isfinite(quantizers.high).all()
    assert (quantizers.moments != 0).any()


def test_the_functions_take_a_model_on_the_gpu(data, tmp_path):
    images = images_of(data)
    model = network().cuda().eval()
    plan = plan_pruning(model, images[:2].cuda(), 0.5)
    assert plan.hash == plan_pruning(copy.deepcopy(model).cpu(), images[:2], 0.5).hash
    masked = copy.deepcopy(model)
    mask_(masked, plan)
    small = shrink(masked, plan)
    assert next(small.parameters()).is_cuda
    with torch.no_grad():
        torch.testing.assert_close(small(images.cuda()), masked(images.cuda()), rtol=1e-3, atol=1e-4)
    ready = quantize_post_training(small, [batch.cuda() for batch in images.split(128)])
    path = export_onnx(ready, images[:2].cuda(), tmp_path / "small.onnx")
    with torch.no_grad():
        expected = convert(ready)(images.to(next(ready.buffers()).device)).argmax(1).cpu().numpy()
    assert (answers(path, images) != expected).sum() <= 1
    save(small, tmp_path / "folder")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "folder")(images), small.cpu()(images), rtol=1e-4, atol=1e-4)


def test_measure_takes_a_model_on_the_gpu(data):
    scores = measure(network().cuda().eval(), data.test_dataloader(), threads=1, batch_sizes=(1,))
    assert scores


def test_cached_answers_are_the_teachers_own(tmp_path):
    data = build_data("fashion_mnist", batch_size=BATCH, seed=0, workers=0, views=2)
    data.keyed = True
    first = fit(module_of(cache=TeacherCache(tmp_path / "cache")), data, tmp_path / "a", precision="32-true",
                deterministic=True)  # fmt: skip
    again = module_of(cache=TeacherCache(tmp_path / "cache"))
    fit(again, data, tmp_path / "b", precision="32-true", deterministic=True)
    assert hash_of(first.lightning_module.student) == hash_of(again.student)


def test_a_shard_of_one_over_nccl(data, tmp_path):
    from torch.distributed.fsdp import fully_shard

    class Sharded(DistillationModule):
        def configure_model(self):
            if not hasattr(self.student, "unshard"):
                fully_shard(self.student, mesh=self.device_mesh["data_parallel"])

    plain = network().to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    module = Sharded(plain, network(24, seed=1), temperature=4.0, soft_weight=0.5)
    trainer = L.Trainer(
        accelerator="gpu", devices=1, strategy=ModelParallelStrategy(1, 1), max_steps=10, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Quantize(begin=0.3)], use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert quantizers_of(module.student).stage == Stage.ON
    leave_processes()


def test_compile_in_place(data, tmp_path):
    module = module_of()
    module.student.compile(backend="aot_eager")
    fit(module, data, tmp_path, *both(), precision="bf16-mixed", limit_train_batches=10)
    assert quantizers_of(module.student).stage == Stage.ON


def test_the_kernels_are_what_runs():
    bank_model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).cuda()
    x = torch.randn(32, 8, device="cuda")
    calibrate_(quantize_(bank_model, example_input=x), [x])
    with torch.no_grad(), torch.profiler.profile() as seen:
        bank_model(x)
    names = {event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA}
    assert any("_activation" in name for name in names), names
    assert any("_weight" in name for name in names), names
