"""mAP of two gloo ranks, of which the second has a picture without a box or none at all, and a fit of a detector."""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_boxes import Points, rectangles

from lighten.distillation.module import DistillationModule
from lighten.tasks import build_task
from lighten.tasks.scorer import scorer_of
from lighten.training.fit import make_trainer

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
SHARES = {"some": [range(9), range(9, 12)], "none": [range(12), range(0)]}


def fit(folder: Path) -> None:
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 1}
    settings["enable_checkpointing"] = False
    trainer = make_trainer(folder=folder, stage="student", settings=settings)
    rank = trainer.global_rank
    task = build_task("detection", matches=4, nms=0.5)
    pictures, labels = rectangles(12)
    data = DataLoader(Subset(TensorDataset(pictures, labels), range(rank, 12, 2)), 3)
    module = DistillationModule(Points(), Points(seed=1), task=task)
    trainer.fit(module, data, data)
    found = {"metrics": {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("student/")}}
    torch.manual_seed(0)
    answers = torch.cat([labels[:, :, 1:].repeat(1, 4, 1), torch.randn(12, 12, 2)], -1)
    for name, shares in SHARES.items():
        scorer, own = scorer_of(task, 2, torch.device("cpu")), list(shares[rank])
        if own:
            scorer.update(*task.rows(answers[own], labels[own]))
        found[name] = {metric: float(value) for metric, value in scorer.compute().items()}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(Path(sys.argv[1]))
