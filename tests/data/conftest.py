"""A small tokenizer, and a token cache of each test's own."""

from dataclasses import dataclass

import pytest
from word_tokenizer import save_tokenizer

from lighten.tasks import register_task, task_names
from lighten.tasks.regression import Regression

if "detection" not in task_names():  # until it is there

    @register_task("detection")
    @dataclass(frozen=True, kw_only=True)
    class Detection(Regression):
        matches: int = 1
        nms: float | None = None

    @register_task("keypoints")
    @dataclass(frozen=True, kw_only=True)
    class Keypoints(Regression):
        pass


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"
