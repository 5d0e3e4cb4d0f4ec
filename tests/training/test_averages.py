"""Which copies of a module, or of a part of it, other callbacks hold."""

import copy
from types import SimpleNamespace

import lightning as L
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lighten.training.averages import averaged_copies


class Whole(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.other = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)


class Keeps(L.Callback):
    def __init__(self, **held):
        vars(self).update(held)


def test_averaged_models_and_deep_copies_of_the_module_or_of_the_part_are_found():
    module = Whole()
    averaged, copied, of_part = AveragedModel(module), copy.deepcopy(module), copy.deepcopy(module.net)
    trainer = SimpleNamespace(
        callbacks=[Keeps(a=averaged, itself=module, part=module.net, number=3), Keeps(b=copied, c=of_part, d=nn.GELU())]
    )
    assert list(averaged_copies(trainer, module, "net")) == [averaged.module.net, copied.net, of_part]
    assert list(averaged_copies(trainer, module)) == [averaged.module, copied]
    module.net.__class__ = type("Sequential", (nn.Sequential,), {})  # as a technique may do after the copy was made
    assert list(averaged_copies(trainer, module, "net")) == [averaged.module.net, copied.net, of_part]
