import copy

import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.training.reference import fingerprint_of, reference


class Fit:
    """Counts, and leaves weights that no constructor makes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: nn.Module) -> None:
        self.count += 1
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(7.0 + self.count)
        model[1].running_mean.fill_(3.0)
        model.train()


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_trained_once_and_then_found(tmp_path) -> None:
    fit = Fit()
    first = reference(tmp_path, build, fit, "abc")
    second = reference(tmp_path, build, fit, "abc")
    assert fit.count == 1
    assert same(first, second)
    assert not first.training
    assert not second.training
    assert sorted(path.name for path in (tmp_path / "abc").iterdir()) == ["manifest.json", "model.safetensors"]
    assert not same(reference(tmp_path, build, fit, "abd"), first)
    assert fit.count == 2


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_shape(path) -> None:
    from lighten.training import reference as module

    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    module._save(model, path.parent, "abc")


@pytest.mark.parametrize("damage", [flip, other_shape, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_one_gives_one_warning_and_is_trained_anew(tmp_path, damage) -> None:
    fit = Fit()
    first = copy.deepcopy(reference(tmp_path, build, fit, "abc"))
    damage(tmp_path / "abc" / "model.safetensors")
    with pytest.warns(UserWarning, match="it is trained anew") as caught:
        again = reference(tmp_path, build, fit, "abc")
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert fit.count == 2
    assert not same(first, again)
    assert same(again, reference(tmp_path, build, fit, "abc"))


def test_a_fit_that_was_cut_short_is_not_taken(tmp_path) -> None:
    fit = Fit()
    reference(tmp_path, build, fit, "abc")
    (tmp_path / "abc" / "manifest.json").unlink()
    reference(tmp_path, build, fit, "abc")
    assert fit.count == 2


def test_fingerprints_depend_on_values_not_on_order() -> None:
    settings = {"lr": 0.1, "names": ["a", "b"]}
    first = fingerprint_of(model={"name": "x"}, settings=settings, seed=0)
    assert first == fingerprint_of(seed=0, settings=dict(reversed(settings.items())), model={"name": "x"})
    assert first != fingerprint_of(model={"name": "x"}, settings=settings, seed=1)
    assert first != fingerprint_of(model={"name": "x"}, settings={**settings, "names": ["b", "a"]}, seed=0)
    with pytest.raises(UserError, match="plain Python"):
        fingerprint_of(model=build())
