"""Trial cuts: what is tried, and that nothing is left of it."""

from dataclasses import replace

import torch
from pruning_nets import FiveLayers

from lighten.pruning.groups import find_groups
from lighten.pruning.trial import Trial


def test_trials_leave_the_copies_as_they_were(images):
    """A forward that keeps what it saw, and counts, sees each cut for the first time."""

    class Keeps(FiveLayers):
        kept, calls = None, 0

        def forward(self, x):
            self.calls += 1
            x = self.a(x)
            assert self.kept is None or self.training
            self.kept = x
            return self.head(self.d(self.c(self.b(x))))

    model = Keeps(lambda x: x)
    structure = find_groups(model, ((images,), {}))
    trial = Trial(model, structure)
    before = {name: tensor.clone() for name, tensor in trial._masked.state_dict().items()}
    assert [trial.fails(range(4)) for _ in range(2)] == [None, None]
    for copied in (trial._masked, trial._small):
        assert (copied.kept, copied.calls, copied.training) == (None, 0, False)
        assert copied.a.out_channels == 8
        assert all(torch.equal(tensor, before[name]) for name, tensor in copied.state_dict().items())


def test_each_channel_is_tried_and_groups_of_one_width_lose_different_numbers(images):
    model = FiveLayers(lambda x: x)
    trial = Trial(model, find_groups(model, ((images,), {})))
    one, other = trial._choices
    assert [sorted(a + b) for a, b in zip(one, other, strict=True)] == [[*range(g.width)] for g in trial.groups]
    widths = [group.width for group in trial.groups]
    taken = list(zip(widths, (len(channels) for channels in one), strict=True))
    assert len(set(taken)) == len(taken)


def test_groups_in_proportion_lose_equal_shares(images):
    model = FiveLayers(lambda x: x)
    found = find_groups(model, ((images,), {}))
    groups = tuple(replace(group, proportion=("a", 2)) for group in found.groups)
    trial = Trial(model, replace(found, groups=groups))
    for choice in trial._choices:
        shares = {len(channels) / group.width for group, channels in zip(groups, choice, strict=True)}
        assert len(shares) == 1
        assert 0 < shares.pop() < 1
