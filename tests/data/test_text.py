import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from word_tokenizer import save_tokenizer

from lighten.data.masking import IGNORED
from lighten.data.text import TextData
from lighten.data.text_part import Part, Texts
from lighten.errors import UserError
from lighten.training import order as order_module
from lighten.utils.batch import BatchFormat


def sentence(i):
    """The words of a number that differs for each i, and as many more as make 1 to 25."""
    return " ".join(f"w{(i + 7 * j) % 40}" for j in range(1 + (i * 11) % 25)) + f" w{i % 40} w{i // 40}"


def texts(train=100, test=11, *, pairs=False, labels=None):
    every = [sentence(i) for i in range(train + test)]
    given = torch.arange(train + test) % 4 if labels is None else labels
    second = [sentence(i + 3) for i in range(train + test)] if pairs else None
    parts = [
        Part(every[part], given[part], second[part] if second else None) for part in (slice(train), slice(train, None))
    ]
    return Texts(*parts, ("a", "b", "c", "d"))


@pytest.fixture
def module(tokenizer):
    def make(read=texts, *, setup=True, **changes):
        given = {"batch_size": 8, "seed": 0, "workers": 0, "validation": 20, "tokenizer": tokenizer}
        data = TextData(read, **given | changes)
        data.name = "mine"
        if setup:
            data.setup("fit")
        return data

    return make


def unpadded(batch):
    return [row[:n].tolist() for row, n in zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)]


def tokenized(data, part):
    return [data.tokenizer(t, truncation=True, max_length=data.max_length)["input_ids"] for t in part.texts]


def test_attributes(module):
    data = module(setup=False)
    assert (data.task, data.keyed, data.views, data.objective) == ("classification", False, 1, "labels")
    assert (data.num_classes, data.class_names) == (4, ("a", "b", "c", "d"))
    assert (data.input_shape, data.mean, data.std) == ((32,), (), ())
    assert data.vocab_size == len(data.tokenizer) == 49
    data.prepare_data()
    data.setup("fit")
    assert (data.train_samples, len(data.val_set), len(data.test_set)) == (80, 20, 11)


def test_known_class_names_need_no_reading(module):
    data = module(lambda: pytest.fail("read"), setup=False, class_names=("x", "y"))
    assert (data.num_classes, data.class_names) == (2, ("x", "y"))


def test_validation_and_test_come_in_order(module):
    data = module()
    for loader, part in ((data.val_dataloader(), data.val_set), (data.test_dataloader(), data.test_set)):
        batches = list(loader)
        assert [row for b in batches for row in unpadded(b)] == tokenized(data, part)
        assert torch.cat([b["labels"] for b in batches]).tolist() == part.labels.tolist()
        assert all(b["input_ids"].shape[1] % 8 == 0 for b in batches)
    assert data.test_set.texts == texts().test.texts
    assert torch.bincount(data.val_set.labels).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_sees_every_training_sample_once(module, bucket, workers):
    data = module(bucket=bucket, workers=workers)
    expected = sorted(zip(tokenized(data, data.train_set), data.train_set.labels.tolist(), strict=True))
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert [len(b["labels"]) for b in batches] == [8] * 10
        seen = [(r, y) for b in batches for r, y in zip(unpadded(b), b["labels"].tolist(), strict=True)]
        assert sorted(seen) == expected


def test_buckets_pad_less(module):
    def padding(**options):
        data = module(lambda: texts(1000, labels=torch.arange(1011) % 4), **options)
        return sum(int((b["attention_mask"] == 0).sum()) for b in data.train_dataloader())

    assert padding() < 0.5 * padding(bucket=False)


def test_no_batch_is_longer_than_max_length(module):
    data = module(max_length=12)
    widths = {b["input_ids"].shape[1] for b in data.train_dataloader()}
    assert widths <= {8, 12}
    assert 12 in widths
    assert module(max_length=64).tokens["train"].lengths.max() == 29


def test_keys_name_the_sample_in_training_alone(module):
    data = module()
    data.keyed = True
    for epoch in (0, 3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert batch["keys"].dtype == torch.int64
            for ids, key in zip(unpadded(batch), BatchFormat().split(batch).keys.tolist(), strict=True):
                assert ids == data.tokenizer(data.train_set.texts[key], truncation=True, max_length=32)["input_ids"]
            parts = BatchFormat().split(batch)
            call, labels = parts.call, parts.labels
            assert set(call[1]) == {"input_ids", "attention_mask"}
            assert len(labels) == 8
    assert not any("keys" in b for loader in (data.val_dataloader(), data.test_dataloader()) for b in loader)


@pytest.mark.parametrize("types", [True, False])
def test_pairs(module, tmp_path, types):
    data = module(lambda: texts(pairs=True), tokenizer=save_tokenizer(tmp_path / "t", types=types), max_length=64)
    for batch in data.test_dataloader():
        assert ("token_type_ids" in batch) == types
    every = [row for b in data.test_dataloader() for row in unpadded(b)]
    pairs = zip(texts(pairs=True).test.texts, texts(pairs=True).test.pairs, strict=True)
    assert every == [data.tokenizer(*pair)["input_ids"] for pair in pairs]


@pytest.mark.parametrize(("task", "width"), [("multilabel", 4), ("regression", 1)])
def test_other_tasks_keep_their_labels(module, task, width):
    labels = (torch.arange(111 * width) % 2).float().view(111, width)
    data = module(lambda: texts(labels=labels), task=task, class_names=tuple("abcd"[:width]))
    assert (data.task, data.num_classes) == (task, width)
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == (8, width)
    assert batch["labels"].dtype == torch.float32
    assert torch.equal(torch.cat([b["labels"] for b in data.test_dataloader()]), labels[100:])


def test_masked_language_modelling(module):
    data = module(objective="mlm")
    assert (data.task, data.views, data.num_classes, data.class_names) == ("masked_lm", None, 49, ())
    loader = data.train_dataloader()
    batches = {}
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        batches[epoch] = list(loader)
        for b in batches[epoch]:
            asked = b["labels"] != IGNORED
            assert b["labels"].shape == b["input_ids"].shape
            assert (asked.sum(1) >= 1).all()
            assert (b["labels"][asked] >= 5).all()
            assert (b["attention_mask"][asked] == 1).all()
    again = module(objective="mlm").train_dataloader()
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(again, batches[0], strict=True))
    other = module(objective="mlm", seed=1)
    assert not torch.equal(next(iter(other.train_dataloader()))["labels"], batches[0][0]["labels"])


def test_masks_of_validation_never_change(module):
    data, other = module(objective="mlm"), module(objective="mlm", seed=5)
    loader = data.val_dataloader()
    first = list(loader)
    loader.sampler.set_epoch(3)  # as Lightning does in its validation loop
    for a, b, c in zip(first, loader, other.val_dataloader(), strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])
        assert torch.equal(a["labels"], b["labels"])
        assert torch.equal(a["input_ids"], c["input_ids"])


@pytest.mark.parametrize("bucket", [True, False])
def test_global_batches_do_not_depend_on_the_number_of_processes(module, monkeypatch, bucket):
    def global_batches(world):
        monkeypatch.setattr(order_module, "world_size", lambda: world)
        shares = []
        for rank in range(world):
            monkeypatch.setattr(order_module, "_rank", lambda rank=rank: rank)
            data = module(batch_size=8 // world, objective="mlm", bucket=bucket)
            data.keyed = True
            loader = data.train_dataloader()
            loader.sampler.set_epoch(2)
            shares.append([dict(zip(b["keys"].tolist(), b["labels"], strict=True)) for b in loader])
        return [
            {key: row[row != IGNORED].tolist() for part in parts for key, row in part.items()}
            for parts in zip(*shares, strict=True)
        ]

    alone = global_batches(1)
    assert [len(b) for b in alone] == [8] * 10
    assert global_batches(2) == alone
    assert global_batches(4) == alone


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_state_resumes_in_mid_epoch(module, bucket, workers):
    options = {"objective": "mlm", "bucket": bucket, "workers": workers}
    loader = module(**options).train_dataloader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = dict(loader.state_dict())
    rest = list(batches)
    again = module(**options).train_dataloader()
    again.load_state_dict(state)
    again.sampler.set_epoch(1)
    resumed = list(again)
    assert len(resumed) == len(rest) == 6
    for a, b in zip(rest, resumed, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


class Bag(L.LightningModule):
    """Guesses from the mean of embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(49, 8)
        self.head = nn.Linear(8, 4)
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch["keys"].tolist())
        mask = batch["attention_mask"][..., None]
        mean = (self.embed(batch["input_ids"]) * mask).sum(1) / mask.sum(1)
        return F.cross_entropy(self.head(mean), batch["labels"])

    def validation_step(self, batch, _):
        assert "keys" not in batch

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveAt(L.Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_killed_fit_ends_with_the_same_bits(module, tmp_path):
    def fit(path=None, callbacks=()):
        data, model = module(), Bag()
        data.keyed = True
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
            callbacks=list(callbacks),
        )  # fmt: skip
        trainer.fit(model, datamodule=data, ckpt_path=path)
        return model

    whole = fit(callbacks=[SaveAt(tmp_path / "at.ckpt", 14)])
    resumed = fit(tmp_path / "at.ckpt")
    assert resumed.seen == whole.seen[14:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_texts_are_read_and_tokenized_once(module, cache):
    calls = []
    data = module(lambda: calls.append(1) or texts(), setup=False)
    assert not calls
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert calls == [1]
    assert len(list(cache.iterdir())) == 2
    module()
    assert len(list(cache.iterdir())) == 2


def test_splits_are_the_same_for_every_seed(module):
    a, b = module(seed=0), module(seed=1)
    assert a.val_set.texts == b.val_set.texts
    assert not set(a.val_set.texts) & set(a.train_set.texts)
    first = [next(iter(data.train_dataloader()))["labels"].tolist() for data in (a, b)]
    assert first[0] != first[1]


def test_fingerprint_tells_what_is_seen(module, tmp_path):
    base = module().fingerprint
    assert base == module(seed=5, batch_size=4, workers=1, bucket=False).fingerprint
    other = save_tokenizer(tmp_path / "other", words=("w1", "w2"))
    different = [
        module(validation=12), module(max_length=16), module(tokenizer=other), module(objective="mlm"),
        module(lambda: texts(labels=torch.arange(111) % 3)), module(lambda: texts(pairs=True)), module(content="ab"),
    ]  # fmt: skip
    assert len({base, *(data.fingerprint for data in different)}) == 8
    known = module(lambda: pytest.fail("read"), content="ab", setup=False)
    assert known.fingerprint == different[-1].fingerprint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "batch_size=0, expected an integer of at least 1"),
        ({"workers": -1}, "workers=-1"),
        ({"validation": 0}, "validation=0"),
        ({"validation": 100}, "data mine: validation=100 leaves nothing of 100 training samples"),
        ({"max_length": 7}, "max_length=7, expected an integer of at least 8"),
        ({"max_length": True}, "max_length=True, expected an integer of at least 8"),
        ({"max_length": 65}, "max_length=65, but this tokenizer's model takes 64 tokens at most"),
        ({"tokenizer": None}, "tokenizer=None, expected minilm, a folder, or a name on the hub"),
        ({"bucket": "no"}, "bucket='no', expected true or false"),
        ({"objective": "mlmm"}, "objective='mlmm'; did you mean 'mlm'?"),
        ({"tokenizer": "/nonexistent"}, "tokenizer='/nonexistent' is not found or cannot be read"),
        ({"read": lambda: texts(0)}, "data mine: the training part has no rows, expected at least one"),
        ({"read": lambda: texts(100, 0)}, "data mine: the test part has no rows"),
        ({"class_names": ("x", "y")}, "data mine: label 2 in row 3 of the training part, expected 0 to 1"),
        (
            {
                "read": lambda: Texts(Part(["a"] * 9, torch.zeros(9).long()), texts().test, tuple("abcd")),
                "validation": 3,
            },
            "data mine: validation=3 leaves nothing for training, as equal texts stay together",
        ),
    ],
)
def test_bad_values(module, changes, says):
    with pytest.raises(UserError) as caught:
        module(**changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_mask_token(module, tmp_path):
    with pytest.raises(UserError, match=r"objective=mlm, but tokenizer=.* has no mask token"):
        module(objective="mlm", tokenizer=save_tokenizer(tmp_path / "t", mask=False))


@pytest.mark.parametrize("bucket", [True, False])
def test_a_batch_larger_than_the_training_part(module, bucket):
    with pytest.raises(UserError, match="batch_size=81, expected 1 to 80"):
        module(batch_size=81, bucket=bucket).train_dataloader()


def test_a_text_without_tokens(module, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordPiece({"[PAD]": 0, "w1": 1}, unk_token="[PAD]"))
    bare.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("!")
    PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="[PAD]").save_pretrained(tmp_path / "bare")
    silent = Texts(Part(["w1", "!", "!!"], torch.zeros(3).long()), Part(["w1"], torch.zeros(1).long()), ("a", "b"))
    with pytest.raises(UserError, match="2 texts of the train part come to no token, the first in row 2"):
        module(lambda: silent, tokenizer=str(tmp_path / "bare"), validation=1)


def test_order_of_lengths_is_shuffled(module):
    """Batches do not come from short to long."""
    data = module(lambda: texts(1000, labels=torch.arange(1011) % 4))
    means = np.array([b["attention_mask"].sum(1).float().mean() for b in data.train_dataloader()])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.25
    assert means.std() > 4
