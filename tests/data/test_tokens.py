import numpy as np
import pytest
from transformers import AutoTokenizer
from word_tokenizer import save_tokenizer

from lighten.data.tokens import Tokenizer, cache_folder, cached_tokens, digest_texts
from lighten.errors import UserError

TEXTS = ["w1 w2 w3", "w4", "the w5 of w6 in a w7 w8 w9 w10 w11 w12"]
PAIRS = ["w3", "w2 w1", "w9 w8 w7 w6 w5"]


def rows(tokens):
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_tokens_are_those_of_one_text_at_a_time(tokenizer, monkeypatch, pairs, at_once):
    monkeypatch.setattr("lighten.data.tokens._AT_ONCE", at_once)
    tokens = Tokenizer(tokenizer)(TEXTS, pairs, 8)
    reference = AutoTokenizer.from_pretrained(tokenizer)
    expected = [
        reference(text, pair, truncation=True, max_length=8)
        for text, pair in zip(TEXTS, pairs or [None] * 3, strict=True)
    ]
    assert rows(tokens) == [one["input_ids"] for one in expected]
    assert max(len(row) for row in rows(tokens)) == 8
    assert tokens.ids.dtype == np.int32
    assert tokens.lengths.tolist() == [len(one["input_ids"]) for one in expected]
    if pairs is None:
        assert tokens.types is None
    else:
        assert tokens.types.tolist() == [t for one in expected for t in one["token_type_ids"]]


def test_a_tokenizer_without_types_gives_none(tmp_path):
    tokens = Tokenizer(save_tokenizer(tmp_path, types=False))(TEXTS, PAIRS, 16)
    assert tokens.types is None
    assert rows(tokens)[1] == [2, 5 + 4 + 4, 3, 5 + 4 + 2, 5 + 4 + 1, 3]


def test_no_text_gives_no_token(tokenizer):
    tokens = Tokenizer(tokenizer)([], None, 8)
    assert len(tokens) == len(tokens.ids) == 0


def test_digest_is_of_the_content_alone(tokenizer, tmp_path):
    first, again = Tokenizer(tokenizer), Tokenizer(tokenizer)
    first(TEXTS, None, 8)
    assert first.digest == again.digest == Tokenizer(save_tokenizer(tmp_path / "copy")).digest
    first.backend(TEXTS, padding=True, truncation=True, max_length=9)
    first.backend.save_pretrained(tmp_path / "used")
    assert Tokenizer(str(tmp_path / "used")).digest == again.digest
    others = [
        save_tokenizer(tmp_path / "a", words=("x", "y")),
        save_tokenizer(tmp_path / "b", types=False),
        save_tokenizer(tmp_path / "c", mask=False),
    ]
    assert len({again.digest, *(Tokenizer(path).digest for path in others)}) == 4


def test_digest_of_texts_tells_borders():
    assert digest_texts(["ab", "c"]) == digest_texts(("ab", "c"))
    assert len({digest_texts(t) for t in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [])}) == 5


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, path):
        self.inside = Tokenizer(path)
        self.digest = self.inside.digest
        self.calls = 0

    def __call__(self, *given):
        self.calls += 1
        return self.inside(*given)


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_the_cache_answers_the_second_time(tokenizer, cache, pairs):
    counting = Counting(tokenizer)
    first = cached_tokens(counting, TEXTS, pairs, 16)
    second = cached_tokens(counting, list(TEXTS), pairs, 16)
    assert counting.calls == 1
    assert rows(first) == rows(second)
    assert (second.ids.dtype, second.offsets.dtype) == (np.int32, np.int64)
    assert (first.types is None) == (second.types is None) == (pairs is None)
    assert [file.suffix for file in cache.iterdir()] == [".npz"]


def test_anything_else_is_another_file(tokenizer, cache, tmp_path):
    other = Tokenizer(save_tokenizer(tmp_path / "other", words=("x",)))
    own = Tokenizer(tokenizer)
    for tokenizer_, texts, pairs, length in (
        (own, TEXTS, None, 16), (own, TEXTS, None, 8), (own, TEXTS[::-1], None, 16), (own, TEXTS, PAIRS, 16),
        (other, TEXTS, None, 16),
    ):  # fmt: skip
        cached_tokens(tokenizer_, texts, pairs, length)
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other"])
def test_a_damaged_file_is_made_anew_with_one_warning(tokenizer, cache, damage):
    counting = Counting(tokenizer)
    good = cached_tokens(counting, TEXTS, None, 16)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    place = content.index(good.ids.tobytes())
    content[place] ^= 1
    if damage == "other":
        np.savez(file, ids=np.zeros(3, np.int32), offsets=np.array([0, 3]))
    else:
        file.write_bytes({"flipped": bytes(content), "cut": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert rows(cached_tokens(counting, TEXTS, None, 16)) == rows(good)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert rows(cached_tokens(counting, TEXTS, None, 16)) == rows(good)
    assert counting.calls == 2


@pytest.mark.parametrize(
    "change",
    [
        {"ids": lambda t: np.array([None] * len(t.ids), dtype=object)},
        {"ids": lambda t: -t.ids},
        {"offsets": lambda t: np.concatenate([[0, 10**12], t.offsets[2:]])},
        {"offsets": lambda t: t.offsets + 1},
        {"offsets": lambda t: t.offsets.astype(np.float64)},
        {"types": lambda t: np.zeros(3, np.int8)},
    ],
)
def test_a_file_that_lies_is_made_anew(tokenizer, cache, change):
    counting = Counting(tokenizer)
    good = cached_tokens(counting, TEXTS, None, 16)
    (file,) = cache.iterdir()
    np.savez(file, **{"ids": good.ids, "offsets": good.offsets} | {key: make(good) for key, make in change.items()})
    with pytest.warns(UserWarning, match="damaged"):
        assert rows(cached_tokens(counting, TEXTS, None, 16)) == rows(good)


def test_a_folder_that_cannot_be_written_is_told_once(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"cannot be written .*; set LIGHTEN_CACHE") as caught:
        tokens = cached_tokens(Tokenizer(tokenizer), TEXTS, None, 16, tmp_path / "file" / "tokens")
    assert len(caught) == 1
    assert len(tokens) == 3


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "tokens"
    monkeypatch.delenv("LIGHTEN_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder()) == "/home/someone/.cache/lighten/tokens"


def test_short_names_are_resolved(tokenizer, monkeypatch):
    monkeypatch.setattr("lighten.models.pretrained.resolve", {"short": tokenizer}.__getitem__)
    assert Tokenizer("short")(TEXTS, None, 8).lengths.tolist() == [5, 3, 8]


def test_bad_tokenizers_are_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, says in (
        (str(tmp_path / "empty"), "is not found or cannot be read"),
        ("https://example.org/x", "is a URL"),
        (save_tokenizer(tmp_path / "pad", pad=False), "has no padding token"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            Tokenizer(path)
        assert "\n" not in str(caught.value)


def test_longer_than_the_model_takes(tokenizer):
    Tokenizer(tokenizer).check_length(64)
    with pytest.raises(UserError, match="max_length=65, but this tokenizer's model takes 64 tokens at most"):
        Tokenizer(tokenizer).check_length(65)
