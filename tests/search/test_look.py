"""A look at a network, against what is known of it otherwise."""

import pytest
import torch
from search_nets import Blobs, Net, trained
from torch import nn

from lighten import export_onnx
from lighten.search.look import look_at
from lighten.search.needs import Needs
from lighten.search.splits import splits_of
from lighten.search.subject import subject_of


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    torch.manual_seed(0)
    net, data = trained(Net(16), Blobs(), epochs=4), Blobs()
    splits = splits_of(data)
    file = export_onnx(net, torch.zeros(2, 1, 8, 8), tmp_path_factory.mktemp("look") / "net.onnx")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    subject = subject_of(net, data, splits)
    found = look_at(subject, data, splits, Needs(max_drop=0.01), files={32: file})
    assert all(torch.equal(value, before[name]) for name, value in subject.network.state_dict().items())
    return found, net


def test_groups_are_those_that_can_be_cut(seen):
    found, net = seen
    assert (found["kind"], found["prunable"], found["align"]) == ("convolutional", True, 8)
    assert {group["name"]: group["width"] for group in found["groups"]} == {"first": 16, "second": 16}
    assert "head" in found["frozen"]
    for group in found["groups"]:
        norms = net.get_submodule(group["name"]).weight.flatten(1).norm(dim=1)
        spread, floor = norms.std(correction=0) / norms.mean(), norms.min() / norms.mean()
        assert group["norms_rank_well"] == bool(spread >= 0.3 and floor <= 0.2)
        shares, damages = zip(*group["curve"], strict=True)
        assert (shares[0], damages[0]) == (0, 0)
        assert list(damages) == sorted(damages)


def test_what_is_foreseen_is_what_widths_cost(seen):
    found, _ = seen
    rows = [row for row in found["foreseen"] if row["target"] == "macs"]
    assert rows
    for row in rows:
        first, second = (16 - round(16 * row["shares"][name]) for name in ("first", "second"))
        macs = 64 * 9 * first + 64 * 9 * first * second + 4 * 4 * second
        assert row["macs"] == pytest.approx(macs / (64 * 9 * 16 + 64 * 9 * 256 + 16 * 16), abs=0.001)
        assert {first % 8, second % 8} == {0}


def test_layers_and_latency(seen):
    found, _ = seen
    assert {layer["name"] for layer in found["layers"]} == {"first", "second", "head"}
    errors = [layer["error"] for layer in found["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert {(row["amount"], row["bits"]) for row in found["latency"]} == {(0.0, 32), (0.6, 32), (0.6, 8)}
    assert all(row["ms"] > 0 for row in found["latency"])
    assert found["steps_per_epoch"] == 6
    assert found["seconds_per_epoch"] > 0


def test_a_network_without_groups_is_looked_at_all_the_same(tmp_path):
    torch.manual_seed(0)
    net, data = trained(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), Blobs(), epochs=2), Blobs()
    splits = splits_of(data)
    found = look_at(subject_of(net, data, splits), data, splits, Needs(max_drop=0.01), files={})
    assert (found["kind"], found["prunable"], found["groups"]) == ("dense", False, [])
    assert "no group of channels" in found["why_not"]
