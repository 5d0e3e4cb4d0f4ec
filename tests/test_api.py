"""The public names, and the twelve lines of the README as a user would type them."""

import copy
import subprocess
import sys

import lightning as L
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lighten

NAMES = [
    "Distill",
    "DistillationModule",
    "Plan",
    "Prediction",
    "Prune",
    "Quantize",
    "TeacherCache",
    "UserError",
    "build_data",
    "build_model",
    "calibrate_",
    "compress",
    "export",
    "export_onnx",
    "find_float_layers",
    "load",
    "mask_",
    "measure",
    "plan_pruning",
    "predict",
    "push_to_hub",
    "quantize_",
    "quantize_post_training",
    "register_data",
    "register_model",
    "register_task",
    "save",
    "shrink",
    "student_from_teacher",
]


class Data(L.LightningDataModule):
    """Sixty-four random images."""

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 1, 16, 16, generator=generator)
        y = torch.randint(0, 10, (64,), generator=generator)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)

    def val_dataloader(self):
        return self.train_dataloader()


def model(width):
    return lighten.build_model("resnet20", num_classes=10, input_shape=(1, 16, 16), width=width, blocks=1)


def test_public_names_are_frozen():
    assert sorted(lighten.__all__) == sorted(NAMES)
    assert all(getattr(lighten, name).__name__ == name for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = lighten.prune


def test_scores_and_losses_are_reached_by_their_place():
    code = "import lighten; print(lighten.pruning.score.fpgm.__name__, lighten.distillation.loss.soft_labels.__name__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "fpgm soft_labels\n"


def test_importing_needs_torch_and_lightning_alone():
    code = (
        "import lighten, sys; print([m for m in ('transformers', 'wandb', 'onnxruntime', 'hydra') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("order", ["prune first", "quantize first"])
def test_the_twelve_lines(order, tmp_path):
    from lighten import DistillationModule, Prune, Quantize, export_onnx, shrink

    student, teacher, example_input = model(8), model(16), torch.randn(2, 1, 16, 16)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    module = DistillationModule(student=student, teacher=teacher, temperature=4.0, soft_weight=0.9)
    prune = Prune(amount=0.5, score="fpgm", begin=0.1, end=0.6)
    quantize = Quantize(begin=0.7)
    callbacks = [prune, quantize] if order == "prune first" else [quantize, prune]
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    L.Trainer(max_epochs=5, callbacks=callbacks, log_every_n_steps=1, enable_model_summary=False, **settings).fit(
        module, Data()
    )
    small = shrink(module.student, prune.plan)
    path = export_onnx(small, example_input, tmp_path / "student.onnx")

    assert small.state_dict()["stem.weight" if hasattr(small, "stem") else next(iter(small.state_dict()))].shape[0] == 4
    assert sum(p.numel() for p in small.parameters()) < 0.3 * sum(p.numel() for p in student.parameters())
    x = torch.randn(64, 1, 16, 16)
    with torch.no_grad():
        cut = small(x)
        masked, exact = (copy.deepcopy(m).double().eval()(x.double()) for m in (module.student, small))
    assert (masked - exact).abs().max() <= 1e-9
    options = onnxruntime.SessionOptions()
    # as written, without integer kernels: those saturate on 8-bit weights where a processor lacks VNNI
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    error = abs(session.run(None, {"input": x.numpy()})[0] - cut.numpy())
    assert error.mean() < 0.01 * cut.abs().mean()  # a code here and there
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


class Plain(L.LightningModule):
    """A module that has never heard of lighten."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.backbone(x).mean((2, 3)))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("part", [None, "backbone"])
def test_callbacks_work_on_a_module_that_knows_nothing_of_lighten(part):
    module = Plain()
    prune, quantize = lighten.Prune(0.5, begin=0.1, end=0.6, module=part), lighten.Quantize(begin=0.7, module=part)
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    L.Trainer(max_epochs=4, callbacks=[quantize, prune], enable_model_summary=False, **settings).fit(module, Data())
    target = module if part is None else module.backbone
    small = lighten.shrink(target, prune.plan)
    convolution = small.backbone[0] if part is None else small[0]
    assert convolution.out_channels == 4
    assert (module.backbone[0].weight.flatten(1).abs().amax(1) == 0).sum() == 4


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_fit_in_another_precision_than_the_teachers(precision):
    """The trainer casts student and batch; the teacher stays as it is, and ranges are kept in float32."""
    from lighten import DistillationModule, Prune, Quantize

    def net():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))

    teacher, prune = net(), Prune(0.5)
    data = TensorDataset(torch.randn(64, 1, 8, 8), torch.arange(64) % 3)
    trainer = L.Trainer(
        max_epochs=2, precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[prune, Quantize(begin=0.5)],
    )  # fmt: skip
    module = DistillationModule(net(), teacher, optimizer=lambda m, _: torch.optim.SGD(m.parameters(), lr=0.01))
    trainer.fit(module, DataLoader(data, 8), DataLoader(data, 8))
    assert teacher[0].weight.dtype == torch.float32
    assert prune.plan.sparsity == 0.5
    assert all(torch.isfinite(p).all() for p in module.student.parameters())
