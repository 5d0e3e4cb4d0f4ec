import os
import signal
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from lighten.errors import UserError
from lighten.training import guard, peers
from lighten.training.fit import leave_processes
from lighten.training.peers import RankMonitor, cause_of, detach, failures_shared, mark_reported
from lighten.training.signals import Preempted

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4321")


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """Rank 1 of two, with a guard that only writes down what it is told."""
    words = []
    process = SimpleNamespace(
        stdin=SimpleNamespace(write=lambda data: words.append(data.decode().strip()), flush=lambda: None),
        poll=lambda: None, communicate=lambda: words.append("ended"),
    )  # fmt: skip
    started = []
    monkeypatch.setattr(peers, "_guard", None)
    monkeypatch.setattr(peers.subprocess, "Popen", lambda command, **_: (started.append(command), process)[1])
    monkeypatch.setattr(peers, "WAIT", 0.3)
    strategy = SimpleNamespace(broadcast=lambda mark: f"first-{mark.partition('-')[2]}", _timeout=timedelta(seconds=7))
    trainer = SimpleNamespace(world_size=2, global_rank=1, strategy=strategy, default_root_dir=str(tmp_path / "run"))
    rank = SimpleNamespace(words=words, started=started, trainer=trainer, peers=RankMonitor())
    rank.peers.setup(trainer, None, "fit")
    rank.cause = Path(words[0].partition(" ")[2])
    yield rank
    detach()


def test_a_process_alone_is_not_watched(plain, batches, trainer, monkeypatch):
    monkeypatch.setattr(peers.subprocess, "Popen", None)
    trainer(max_epochs=1).fit(plain(), batches, batches)
    assert peers._guard is None
    assert cause_of(LOST) is None


def test_a_rank_is_watched_with_the_strategys_patience_until_it_parts(rank, tmp_path):
    ((_, *flags, script, number, _, patience, launcher),) = rank.started
    assert (flags, script, number, patience, launcher) == (["-I", "-S"], guard.__file__, "1", "7.0", "0")
    assert rank.cause.parent == tmp_path / "run"
    rank.peers.setup(rank.trainer, None, "fit")
    assert len(rank.started) == 1
    assert rank.words[1] != rank.words[0]
    leave_processes()
    assert rank.words[2:] == ["detach", "ended"]
    assert peers._guard is None


def test_what_an_earlier_fit_had_to_leave_elsewhere_is_removed_once_it_is_old(rank, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    old, new, other = [tmp_path / name for name in (".writing-cause-1-2.tmp", ".writing-cause-3-4.tmp", "cause")]
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    rank.peers.setup(rank.trainer, None, "fit")
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


def test_what_fails_here_is_left_for_the_others(rank):
    rank.peers.on_exception(rank.trainer, None, KeyError("luck"))
    assert guard.read_cause(rank.cause) == "rank 1 failed: KeyError: 'luck'"
    assert cause_of(KeyError("luck")) is None
    assert rank.words[1] == "failed"
    mark_reported()
    assert rank.words[-1] == "reported"


def test_a_users_mistake_is_told_in_its_own_words(rank):
    rank.peers.on_exception(rank.trainer, None, UserError("the disk\nis full"))
    assert guard.read_cause(rank.cause) == "rank 1 failed: the disk is full"


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (UserError("no such\nthing"), "a rank failed: no such thing"),
        (KeyError("luck"), "a rank failed: KeyError: 'luck'"),
    ],
    ids=["a user's mistake", "another"],
)
def test_what_fails_between_two_fits_is_left_for_the_others_too(rank, error, left):
    def fail():
        raise error

    with pytest.raises(type(error)), failures_shared():
        fail()
    assert rank.words[-1] == "reported"
    assert guard.read_cause(rank.cause) == left


def test_being_asked_to_stop_is_no_failure(rank):
    rank.peers.on_exception(rank.trainer, None, Preempted(signal.SIGTERM, "after step 3"))
    assert guard.read_cause(rank.cause) is None
    assert len(rank.words) == 1


def test_a_lost_connection_is_told_as_what_became_of_the_other(rank):
    guard.claim_cause(rank.cause, "rank 0 was killed")
    rank.peers.on_exception(rank.trainer, None, LOST)
    assert cause_of(LOST) == "rank 0 was killed"
    assert cause_of(LOST, 1) == "rank 0 was killed"


def test_without_a_word_of_the_other_the_loss_itself_is_the_cause(rank):
    rank.peers.on_exception(rank.trainer, None, LOST)
    assert cause_of(LOST) == guard.read_cause(rank.cause)
    assert guard.read_cause(rank.cause).startswith("rank 1 has lost the others: [gloo/")


def test_processes_that_never_met_are_told_of_too():
    assert cause_of(dist.DistStoreError("1/2 clients joined.")).startswith("the fit's processes did not come together")
