"""``lighten compress`` against a search that is over at once; a real one is in tests/run/test_search.py."""

import json
import signal

import pytest
import torch
from picture_files import class_folder
from search_run import write_search
from stub_search import StubSearch

from lighten import build_data, build_model, save
from lighten.cli.main import main
from lighten.training.signals import Preempted


@pytest.fixture
def stub(monkeypatch):
    found = StubSearch()
    monkeypatch.setattr("lighten.search.compress.compress", found)
    return found


@pytest.fixture
def dense(tmp_path):
    """A folder of a model that says what it was trained on."""
    torch.manual_seed(0)
    data = build_data("fashion_mnist", validation=100)
    model = build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[4]).eval()
    about = {"name": data.name, "options": dict(data.options), "fingerprint": data.fingerprint}
    return save(model, tmp_path / "dense", data=about, task="classification")


def test_a_need_that_is_met_ends_with_zero_and_a_table(stub, dense, capsys):
    assert main(["compress", str(dense), "--max-drop", "1%", "--budget", "20min"]) == 0
    shown = capsys.readouterr()
    place = dense.with_name("dense-compressed")
    assert shown.out.splitlines() == [
        "the table", str(place / "best" / "student"), str(place / "best" / "student.onnx"),
        f"report {place / 'report.html'}",
    ]  # fmt: skip
    assert shown.err == "trial 0: a first result\n"
    (call,) = stub.calls
    assert (call["max_drop"], call["target"], call["budget"], call["folder"]) == ("1%", None, "20min", place)
    assert call["data"].name == "fashion_mnist"
    assert call["data"].options["validation"] == 100
    assert call["model"](torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_a_need_that_is_not_met_ends_with_four_and_a_line_and_all_is_saved(stub, dense, capsys):
    stub.met = False
    assert main(["compress", str(dense)]) == 4
    shown = capsys.readouterr()
    assert "the table" in shown.out
    assert shown.err.splitlines()[-1].startswith("not met; the nearest is trial 4: drop 1.2 %; it is saved in ")
    assert (dense.with_name("dense-compressed") / "best" / "student" / "model.safetensors").exists()


def test_targets_data_and_place_are_passed_on(stub, dense, tmp_path, capsys):
    words = ["--latency-ms", "2", "--batch", "4", "--threads", "2", "--bytes", "50%", "--macs", "1M"]
    words += ["--parameters", "100k", "--out", str(tmp_path / "there"), "--data-options", "validation=50", "seed=3"]
    assert main(["compress", str(dense), *words[:-1]]) == 0
    (call,) = stub.calls
    expected = {"latency_ms": "2", "batch": 4, "threads": 2, "bytes": "50%", "macs": "1M", "parameters": "100k"}
    assert call["target"] == expected
    assert call["folder"] == tmp_path / "there"
    assert call["data"].options["validation"] == 50
    capsys.readouterr()


def test_json_is_all_that_is_printed(stub, dense, capsys):
    stub.met = False
    assert main(["compress", str(dense), "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["met"] is False
    assert told["frontier"] == [
        {"trial": 4, "folder": "trials/4", "metric": 0.898, "drop": 0.0085, "bytes": 118_240, "latency_ms": 0.075}
    ]
    assert told["confirmation"]["bound"] == 0.0124


@pytest.mark.parametrize(
    ("stop", "code"),
    [(KeyboardInterrupt(), 130), (Preempted(signal.SIGTERM, "after trial 0, all of it is saved"), 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_stop_says_in_a_line_that_the_same_command_resumes(stub, dense, capsys, stop, code):
    stub.stops_with = stop
    with pytest.raises(SystemExit) as ended:
        main(["compress", str(dense)])
    assert ended.value.code == code
    assert "saved" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data-options", "validation"], "--data-options 'validation': expected KEY=VALUE"),
        (["--data-options", "validatoin=3"], "did you mean 'validation'"),
        (["--data", "fashion_mnits"], "did you mean 'fashion_mnist'"),
    ],
)
def test_what_is_wrong_with_the_data_is_one_line(stub, dense, capsys, words, said):
    assert main(["compress", str(dense), *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not stub.calls


def test_a_model_that_does_not_name_its_data_is_refused(stub, tmp_path, capsys):
    model = build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[4])
    save(model, tmp_path / "bare")
    assert main(["compress", str(tmp_path / "bare")]) == 1
    assert "name them with --data" in capsys.readouterr().err
    assert main(["compress", str(tmp_path / "bare"), "--data", "fashion_mnist"]) == 0


def test_few_samples_are_given_in_batches_that_they_fill(stub, dense, tmp_path):
    class_folder(tmp_path / "few", {"a": 20, "b": 20}, height=8, width=8)
    words = ["--data", "images", "--data-options", f"folder={tmp_path / 'few'}"]
    for more, size in ([], 7), (["batch_size=3"], 3):
        assert main(["compress", str(dense), *words, *more]) == 0
        data = stub.calls[-1]["data"]
        data.setup("fit")
        assert (data.train_samples, data.batch_size) == (28, size)


def test_a_folder_that_is_not_there_is_told_as_that(tmp_path, capsys):
    assert main(["compress", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.endswith("nowhere: no such folder, expected one with config.json; check the path\n")


def test_other_data_of_that_name_are_warned_of(stub, dense, capsys):
    config = json.loads((dense / "config.json").read_text())
    config["data"]["fingerprint"] = "ab" * 32
    (dense / "config.json").write_text(json.dumps(config))
    assert main(["compress", str(dense)]) == 0
    assert "was trained on other data of that name" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--max-drop", "3"], ["--budget", "soon"], ["--bytes", "-4"], ["--threads", "2"]])
def test_needs_that_make_no_sense_are_one_line(dense, capsys, words):
    """Here the search is the real one, which refuses before it begins."""
    assert main(["compress", str(dense), *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("error: max_drop=", "error: budget=", "error: target"))
    assert not dense.with_name("dense-compressed").exists()


def test_the_report_of_a_search_is_written_again_by_its_command(tmp_path, capsys):
    folder = write_search(tmp_path / "one", "running")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "still searching" in (folder / "report.html").read_text()
