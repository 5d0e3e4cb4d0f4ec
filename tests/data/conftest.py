"""A small tokenizer, and a token cache of each test's own."""

import pytest
from word_tokenizer import save_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"
