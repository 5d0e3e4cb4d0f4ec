import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lighten.errors import UserError
from lighten.training.checkpoint import AtomicCheckpointIO, KeepCheckpoints, latest_good, manifest_of, sealed, verify

io = AtomicCheckpointIO()


def save(folder, step: int, name: str | None = None):
    path = folder / (name or f"step{step}.ckpt")
    io.save_checkpoint({"global_step": step, "epoch": 0, "w": torch.arange(50.0) + step}, path)
    return path


def flip_bit(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_is_saved_is_loaded_and_its_manifest_is_true(tmp_path) -> None:
    path = save(tmp_path / "new", 3)
    assert torch.equal(io.load_checkpoint(path)["w"], torch.arange(50.0) + 3)
    told = json.loads(manifest_of(path).read_text())
    seal = told.pop("seal")
    assert seal == hashlib.sha256(json.dumps(told).encode()).hexdigest()
    assert told == {
        "schema": 2,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "step": 3,
        "epoch": 0,
    }
    assert len(list(path.parent.iterdir())) == 2


def test_every_flipped_bit_and_every_truncation_is_detected(tmp_path) -> None:
    path = save(tmp_path, 1)
    whole = path.read_bytes()
    places = torch.randint(len(whole), (40,), generator=torch.Generator().manual_seed(0)).tolist()
    for at in places:
        flip_bit(path, at)
        assert verify(path), f"bit {at}"
        path.write_bytes(whole[:at])
        assert verify(path), f"cut at {at}"
        path.write_bytes(whole)
    assert verify(path) is None


def test_every_flipped_bit_and_every_truncation_of_a_manifest_is_detected(tmp_path) -> None:
    path = save(tmp_path, 1)
    manifest = manifest_of(path)
    whole = manifest.read_bytes()
    for at in range(len(whole)):
        flip_bit(manifest, at)
        assert verify(path), f"bit at {at}"
        manifest.write_bytes(whole)
        os.truncate(manifest, at)
        assert verify(path), f"cut at {at}"
        manifest.write_bytes(whole)
    assert verify(path) is None


def damage_flip(path) -> None:
    flip_bit(path, path.stat().st_size // 2)


def damage_cut(path) -> None:
    os.truncate(path, 100)


def damage_uncommitted(path) -> None:
    manifest_of(path).unlink()


def damage_manifest(path) -> None:
    manifest_of(path).write_text("{")


def damage_gone(path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_flip, "SHA-256"),
        (damage_cut, "100 bytes"),
        (damage_uncommitted, "save was cut short"),
        (damage_manifest, "save was cut short"),
        (damage_gone, "No such file"),
    ],
)
def test_damage_is_told_in_one_line_with_the_path(tmp_path, damage, told) -> None:
    path = save(tmp_path, 1)
    damage(path)
    with pytest.raises(UserError, match=told) as caught:
        io.load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def commit(path, step: int = 1) -> None:
    data = path.read_bytes()
    content = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "step": step}
    manifest_of(path).write_text(sealed(content))


def test_a_pickle_is_not_executed_even_with_a_fitting_manifest(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    path = tmp_path / "bomb.ckpt"
    for write in (lambda: torch.save(Bomb(), path), lambda: path.write_bytes(pickle.dumps(Bomb()))):
        write()
        commit(path)
        with pytest.raises(UserError, match="cannot be read safely") as caught:
            io.load_checkpoint(path)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="weights_only=False"):
            io.load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("url", ["https://example.org/a.ckpt", "s3://bucket/a.ckpt", "file:///a.ckpt"])
def test_urls_are_refused(url: str) -> None:
    for use in (io.load_checkpoint, io.remove_checkpoint, lambda u: io.save_checkpoint({}, u)):
        with pytest.raises(UserError, match="is a URL"):
            use(url)


def test_latest_good_walks_back_with_one_warning(tmp_path) -> None:
    assert latest_good(tmp_path) is None
    paths = [save(tmp_path, step) for step in (5, 20, 10, 30)]
    assert latest_good(tmp_path) == paths[3]
    damage_flip(paths[3])
    damage_uncommitted(paths[1])
    with pytest.warns(UserWarning, match=r"step30.ckpt: .*going back to step10.ckpt") as caught:
        assert latest_good(tmp_path) == paths[2]
    assert len(caught) == 1
    for path in paths:
        damage_cut(path)
    with pytest.warns(UserWarning, match="no good checkpoint is left"):
        assert latest_good(tmp_path) is None


def test_of_equal_steps_the_one_saved_last_is_taken(tmp_path) -> None:
    first, second = save(tmp_path, 5, "b.ckpt"), save(tmp_path, 5, "a.ckpt")
    os.utime(first, ns=(1, 1))
    assert latest_good(tmp_path) == second


def test_an_unwritable_folder_is_told_and_the_old_file_stays(tmp_path, monkeypatch) -> None:
    path = save(tmp_path, 1)

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lighten.utils.files.os.fsync", full)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\)"):
        save(tmp_path, 2, path.name)
    monkeypatch.undo()
    assert io.load_checkpoint(path)["global_step"] == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_remove_takes_the_manifest_along(tmp_path) -> None:
    path = save(tmp_path, 1)
    io.remove_checkpoint(path)
    assert not list(tmp_path.iterdir())
    io.remove_checkpoint(path)


KILLS = """
import os, shutil, signal, sys, warnings
from pathlib import Path
import torch
from lighten.utils import files
from lighten.training.checkpoint import AtomicCheckpointIO, latest_good

warnings.simplefilter("ignore")
io = AtomicCheckpointIO()


def save(step, name):
    io.save_checkpoint({"global_step": step, "w": torch.full((5000,), step)}, folder / name)


def die_at(call, wrapped):
    def inner(*args):
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return wrapped(*args)

    return inner


def die_in_the_middle(content, file):
    file.write(b"half a file")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


for name in ("3.ckpt", "1.ckpt"):  # a new name, and one that is overwritten
    for call in range(9):
        folder, count = Path(sys.argv[1]) / f"{name}-{call}", [0]
        save(1, "1.ckpt")
        save(2, "2.ckpt")
        pid = os.fork()
        if pid == 0:
            os.fsync, os.replace = die_at(call, os.fsync), die_at(call, os.replace)
            if call == 0:
                torch.save = die_in_the_middle
            save(3, name)
            os._exit(0)
        killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
        found = io.load_checkpoint(latest_good(folder))
        assert found["w"].eq(found["global_step"]).all()
        AtomicCheckpointIO().save_checkpoint({"global_step": 4}, folder / "4.ckpt")
        left = [path.name for path in folder.iterdir() if path.suffix == ".tmp"]
        print(name, call, killed, found["global_step"], left)
"""


def test_killed_at_any_moment_of_a_save_the_latest_is_readable(tmp_path) -> None:
    """Before each of the calls that reach the disk, and in the middle of the data."""
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    lines = [line.split(maxsplit=4) for line in told.stdout.splitlines()]
    steps = {name: [int(step) for n, _, _, step, _ in lines if n == name] for name in ("3.ckpt", "1.ckpt")}
    assert [killed for _, _, killed, _, _ in lines] == (["True"] * 7 + ["False"] * 2) * 2
    assert all(left == "[]" for *_, left in lines), "temporary files outlive the next start"
    assert steps["3.ckpt"] == [2] * 6 + [3] * 3, "the manifest commits"
    assert steps["1.ckpt"] == [2] * 6 + [3] * 3


def test_best_last_and_previous_are_kept(tmp_path, plain, batches, trainer) -> None:
    fit = trainer(max_epochs=4)
    (tmp_path / "checkpoints").mkdir()
    stale = tmp_path / "checkpoints" / ".writing-last.ckpt-1.tmp"
    stale.touch()
    fit.fit(plain(), batches, batches)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert [name for name in kept if name.startswith("last")] == [
        "last-epoch=002-step=0000009.ckpt",
        "last-epoch=003-step=0000012.ckpt",
    ]
    assert len([name for name in kept if name.startswith("best")]) == 1
    assert all(verify(tmp_path / "checkpoints" / name) is None for name in kept)
    assert not stale.exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 6


@pytest.mark.parametrize(
    ("stage", "first", "stays"), [("fit", True, False), ("fit", False, True), ("test", True, True)]
)
def test_only_the_first_rank_of_a_fit_clears_away(tmp_path, monkeypatch, stage, first, stays) -> None:
    monkeypatch.setattr(ModelCheckpoint, "setup", lambda *_: None)
    stale = tmp_path / ".writing-last.ckpt-1.tmp"
    stale.touch()
    KeepCheckpoints(tmp_path).setup(SimpleNamespace(is_global_zero=first), None, stage)
    assert stale.exists() == stays


def test_a_folder_that_has_moved_keeps_its_books(tmp_path, plain, batches, trainer) -> None:
    trainer(tmp_path / "old", max_epochs=2).fit(plain(), batches, batches)
    shutil.move(tmp_path / "old", tmp_path / "new")
    path = latest_good(tmp_path / "new" / "checkpoints")
    fit = trainer(tmp_path / "new", max_epochs=4)
    fit.fit(plain(), batches, batches, ckpt_path=path)
    kept = sorted(path.name for path in (tmp_path / "new" / "checkpoints").glob("last*.ckpt"))
    assert kept == ["last-epoch=002-step=0000009.ckpt", "last-epoch=003-step=0000012.ckpt"]
    assert os.path.dirname(fit.checkpoint_callbacks[0].best_model_path) == str(tmp_path / "new" / "checkpoints")


def test_what_kills_have_left_is_removed_and_nothing_else(tmp_path, plain, batches, trainer) -> None:
    trainer(max_epochs=3).fit(plain(), batches, batches)
    folder = tmp_path / "checkpoints"
    newest = latest_good(folder)
    assert newest.name == "last-epoch=002-step=0000009.ckpt"
    before = {path.name for path in folder.iterdir()}

    def leave(*names: str) -> None:
        for name in names:
            shutil.copy(newest, folder / name)  # uncommitted, as after a kill before the manifest or the removal

    leave("last-epoch=000-step=0000003.ckpt", "best-epoch=007-step=0000024.ckpt", "mine.ckpt", ".writing-a-1.tmp")
    trainer(max_epochs=3).fit(plain(), batches, batches, ckpt_path=newest)  # is done already
    assert {path.name for path in folder.iterdir()} == {*before, "mine.ckpt"}
    leave("last-epoch=000-step=0000003.ckpt", "last-epoch=009-step=0000030.ckpt")
    seen = []

    class Look(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
            seen.append(sorted(path.name[:14] for path in folder.glob("last*.ckpt")))
            super().save_checkpoint(checkpoint, path)

    fit = trainer(max_epochs=5)
    fit.strategy.checkpoint_io = Look()
    fit.fit(plain(), batches, batches, ckpt_path=newest)
    assert seen[0] == [f"last-epoch=00{epoch}" for epoch in (0, 1, 2, 9)], "nothing goes before a save is done"
    assert seen[-1] == [f"last-epoch=00{epoch}" for epoch in (2, 3)]
    assert len([path for path in folder.iterdir() if path.suffix == ".ckpt"]) == 4


def digest(module) -> str:
    parts = [value.numpy().tobytes() for value in module.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def states(fit) -> list[bytes]:
    return [
        value.numpy().tobytes()
        for state in fit.optimizers[0].state_dict()["state"].values()
        for value in state.values()
    ]


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path, plain, batches, trainer) -> None:
    straight, whole = plain(), trainer(tmp_path / "straight", max_epochs=4)
    whole.fit(straight, batches, batches)

    class Stop(Exception):
        pass

    cut = plain()
    cut.on_train_batch_start = lambda batch, batch_idx: stop() if cut.global_step == 7 else None

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        trainer(tmp_path / "cut", max_epochs=4).fit(cut, batches, batches)
    path = latest_good(tmp_path / "cut" / "checkpoints")
    assert path.name == "last-epoch=001-step=0000006.ckpt"
    torch.manual_seed(99)
    resumed, rest = plain(), trainer(tmp_path / "cut", max_epochs=4)
    rest.fit(resumed, batches, batches, ckpt_path=path)
    assert digest(resumed) == digest(straight)
    assert states(rest) == states(whole)
    assert rest.lr_scheduler_configs[0].scheduler.get_last_lr() == whole.lr_scheduler_configs[0].scheduler.get_last_lr()
    assert digest(straight) != digest(cut)


def test_a_damaged_checkpoint_stops_the_fit_that_asks_for_it(tmp_path, plain, batches, trainer) -> None:
    trainer().fit(plain(), batches, batches)
    path = latest_good(tmp_path / "checkpoints")
    damage_flip(path)
    with pytest.raises(UserError, match="damaged"):
        trainer(max_epochs=3).fit(plain(), batches, batches, ckpt_path=path)


def test_a_link_to_the_last_checkpoint_is_read_as_what_it_points_to(tmp_path) -> None:
    AtomicCheckpointIO().save_checkpoint({"global_step": 3}, tmp_path / "a.ckpt")
    (tmp_path / "last.ckpt").symlink_to("a.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt") == {"global_step": 3}
    assert verify(tmp_path / "last.ckpt") is None
