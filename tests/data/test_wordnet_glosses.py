from importlib.resources import files

import pytest
import torch

from lighten.data import build_data, wordnet_glosses
from lighten.data.embedded import EmbeddedFile
from lighten.data.wordnet import CLASSES, is_test
from lighten.errors import UserError


@pytest.fixture(scope="module")
def texts():
    return wordnet_glosses.read_embedded()


def test_no_gloss_is_in_two_parts(texts):
    train, test = texts.train.texts, texts.test.texts
    assert (len(train), len(test)) == (16_000, 2_000)
    assert len({*train, *test}) == 18_000
    assert all(map(is_test, test))
    assert not any(map(is_test, train))


def test_each_class_has_its_share(texts):
    train, test = (torch.bincount(part.labels, minlength=45) for part in (texts.train, texts.test))
    assert train.min() >= 20
    assert test.min() >= 3
    assert (train - 8 * test).abs().max() <= 120
    assert CLASSES[int(train.argmax())] == "adj.all"


def test_labels_belong_to_their_texts(texts):
    found = {CLASSES[label]: [] for label in texts.train.labels.tolist()}
    for text, label in zip(texts.train.texts, texts.train.labels.tolist(), strict=True):
        found[CLASSES[label]].append(text)
    for name, word in (("noun.animal", "fish"), ("noun.plant", "shrub"), ("noun.food", "sauce"), ("adv.all", "manner")):
        share = {
            other: sum(word in text.split() for text in glosses) / len(glosses) for other, glosses in found.items()
        }
        assert max(share, key=share.get) == name


def test_examples_are_left_out(texts):
    assert sum('; "' in text for text in texts.train.texts) == 0
    assert sum('"' in text for text in texts.train.texts) < 10


def test_facts(tokenizer):
    data = build_data("wordnet_glosses", tokenizer=tokenizer)
    assert data.name == "wordnet_glosses"
    assert data.options == {
        "folder": None, "validation": 1500, "tokenizer": tokenizer, "max_length": 32, "bucket": True,
        "objective": "labels",
    }  # fmt: skip
    assert data.num_classes == len(data.class_names) == 45
    assert (data.task, data.input_shape, data.mean, data.std) == ("classification", (32,), (), ())
    assert "WordNet" in data.licence
    assert len(bytes.fromhex(data.fingerprint)) == 32
    data.setup("fit")
    assert (data.train_samples, len(data.val_set), len(data.test_set)) == (14_500, 1500, 2000)
    assert torch.bincount(data.val_set.labels, minlength=45).sum() == 1500


def test_the_notice_is_kept():
    notice = (files("lighten.data") / "LICENSE-wordnet").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "provided that you agree to comply with" in notice
    assert 'THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS"' in notice


def test_rows_survive_the_file_which_is_always_the_same():
    train, test = [("a cat", 5), ("groß; 'x'", 44)], [("b", 0)]
    content = wordnet_glosses.encode(train, test)
    assert wordnet_glosses.decode(content) == (train, test)
    assert wordnet_glosses.encode(list(train), tuple(test)) == content


@pytest.fixture
def moved(tmp_path, monkeypatch):
    path = tmp_path / "wordnet_glosses.parquet"
    monkeypatch.setattr(EmbeddedFile, "path", path)
    wordnet_glosses.read_embedded.cache_clear()
    yield path
    wordnet_glosses.read_embedded.cache_clear()


def test_a_missing_file_is_told_in_one_line(moved, tokenizer):
    with pytest.raises(UserError) as caught:
        build_data("wordnet_glosses", tokenizer=tokenizer).prepare_data()
    assert str(caught.value) == (
        f"{moved} cannot be read (No such file or directory); "
        "reinstall lighten, or run scripts/build_wordnet_glosses.py in its repository"
    )


def test_a_flipped_bit_is_found_before_decoding(moved, tokenizer):
    content = bytearray((files("lighten.data") / "wordnet_glosses.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    moved.write_bytes(content)
    with pytest.raises(UserError, match=r"wordnet_glosses\.parquet is damaged: its SHA-256 is") as caught:
        build_data("wordnet_glosses", tokenizer=tokenizer).prepare_data()
    assert "\n" not in str(caught.value)


def test_all_glosses_from_a_folder(tmp_path, tokenizer):
    for kind, label in (("noun", 5), ("verb", 38), ("adj", 0), ("adv", 2)):
        lines = [f"00000001 {label:02d} n 01 x 0 000 | {kind} w{i} w{i // 40}  " for i in range(60)]
        (tmp_path / f"data.{kind}").write_text("\n".join(lines))
    data = build_data("wordnet_glosses", folder=str(tmp_path), tokenizer=tokenizer, validation=20)
    data.setup("fit")
    assert len(data.train_set) + len(data.val_set) + len(data.test_set) == 240
    assert 10 < len(data.test_set) < 45
    assert all(map(is_test, data.test_set.texts))
    for part in (data.train_set, data.val_set, data.test_set):
        kinds = [{"noun": 5, "verb": 38, "adj": 0, "adv": 2}[text.split()[0]] for text in part.texts]
        assert kinds == part.labels.tolist()
    assert data.fingerprint != build_data("wordnet_glosses", tokenizer=tokenizer, validation=20).fingerprint


def test_checking_options_reads_and_imports_nothing():
    import subprocess
    import sys

    code = (
        "import sys; from lighten.data.registry import check_data; check_data('wordnet_glosses', {'validation': 9}); "
        "check_data('glue', {'task_name': 'rte'}); check_data('table', {'path': 'x.csv'}); "
        "print([m for m in ('torch', 'lightning', 'datasets', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
