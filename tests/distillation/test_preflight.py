import copy
import random
import re
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from lighten.data import build_data
from lighten.distillation.preflight import Problem, preflight
from lighten.distillation.teacher import fingerprint
from lighten.models.registry import build_model
from lighten.utils.batch import BatchFormat
from lighten.utils.inputs import logits_of

TEXT_SIZES = {"num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 64}


def trained(model, batches, lr):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for batch in batches:
        parts = BatchFormat().split(batch)
        (args, kwargs), labels = parts.call, parts.labels
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model(*args, **kwargs)), labels).backward()
        optimizer.step()
    return model.eval()


def bert(width, seed, **changed):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 30522, "num_labels": 45, "hidden_size": width, "intermediate_size": 2 * width}
    return BertForSequenceClassification(BertConfig(**{**sizes, **TEXT_SIZES, **changed}))


def set_up(data, student, teacher):
    return {
        "student": student,
        "teacher": teacher,
        "train": data.train_dataloader(),
        "validation": data.val_dataloader(),
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "teacher_classes": data.class_names,
    }


@pytest.fixture(scope="module")
def images():
    data = build_data("fashion_mnist", batch_size=64)
    data.prepare_data()
    data.setup("fit")
    nets = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for width in (4, 8):
            options = {"width": width, "blocks": 1, "stem_stride": 2}
            nets.append(build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), **options))
    for _ in range(3):
        trained(nets[1].train(), data.train_dataloader(), 3e-3)
    statistics = (data.mean, data.std)
    return set_up(data, *nets) | {"normalisation": statistics, "teacher_normalisation": statistics}


@pytest.fixture(scope="module")
def texts():
    data = build_data("wordnet_glosses", batch_size=64)
    data.prepare_data()
    data.setup("fit")
    with torch.random.fork_rng():
        teacher = trained(bert(32, 0), data.train_dataloader(), 3e-3)
        return set_up(data, bert(16, 1), teacher) | {"tokenizer": data.tokenizer, "teacher_tokenizer": data.tokenizer}


def told(findings: list[Problem]) -> str:
    assert all(f.severity in ("error", "warning") for f in findings)
    assert all(("\n" not in f.message and "; " in f.message) or "?" in f.message for f in findings)
    return "\n".join(f"{f.severity}: {f.message}" for f in findings)


def batches(loader, change, limit=8):
    return [change(batch) for batch, _ in zip(loader, range(limit), strict=False)]


def both(setup, change, limit=8):
    return {part: batches(setup[part], change, limit) for part in ("train", "validation")}


def labelled(change):
    return lambda s: both(
        s, lambda b: {**b, "labels": change(b["labels"])} if isinstance(b, dict) else (b[0], change(b[1]))
    )


def seeing(change):
    return lambda s: both(s, lambda batch: (change(batch[0]), batch[1]))


def reading(change):
    return lambda s: both(s, lambda batch: {**batch, **change(batch)})


def headed(change):
    """Return a fault of the last layer of a copy of the teacher."""

    def plant(setup):
        teacher = copy.deepcopy(setup["teacher"])
        last = [m for m in teacher.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            change(last)
        return {"teacher": teacher}

    return plant


def having(**changed):
    return lambda setup: changed


def reorder(order):
    def change(last):
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())

    return headed(change)


def of_classes(classes):
    return having(teacher=nn.Sequential(nn.Flatten(), nn.Linear(784, classes)), student=None)


def nan_for_one(setup):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = copy.deepcopy(setup["teacher"])
            self.bad = next(iter(setup["validation"]))[0][21]

        def forward(self, x):
            return self.inside(x).masked_fill((x == self.bad).flatten(1).all(1)[:, None], float("nan"))

    return {"teacher": Sometimes()}


def shared_memory(setup):
    student = copy.deepcopy(setup["teacher"])
    first = next(iter(student.parameters()))
    first.data = next(iter(setup["teacher"].parameters())).data
    return {"student": student}


def shared_layer(setup):
    student = copy.deepcopy(setup["student"])
    student.extra = next(m for m in setup["teacher"].modules() if isinstance(m, nn.Conv2d))
    return {"student": student}


def one_sample_left(setup):
    inputs, labels = next(iter(setup["train"]))[:2]
    return {"train": DataLoader(TensorDataset(inputs[:33], labels[:33]), batch_size=32), "samples": 32}


def frozen_student(setup):
    return {"student": copy.deepcopy(setup["student"]).requires_grad_(False)}


def not_normalised(setup):
    (mean,), (std,) = setup["normalisation"]
    return seeing(lambda x: x * std + mean)(setup)


def raw(setup):
    (mean,), (std,) = setup["normalisation"]
    return seeing(lambda x: ((x * std + mean) * 255).round())(setup)


def repeated_validation(setup):
    return {"train": setup["validation"]}


def copied_samples(setup):
    validation = batches(setup["validation"], lambda b: b)
    return {"validation": validation, "train": [*batches(setup["train"], lambda b: b, 4), validation[2]]}


def overlapping(setup):
    inputs, labels = zip(*batches(setup["train"], lambda b: b[:2]), strict=True)
    dataset = TensorDataset(torch.cat(inputs), torch.cat(labels))
    return {
        "train": DataLoader(Subset(dataset, range(400)), 50),
        "validation": DataLoader(Subset(dataset, range(380, 480)), 50),
    }


def nan_pixel(x):
    x = x.clone()
    x[3, 0, 5, 5] = float("nan")
    return x


def swapped_tokens(setup):
    vocabulary = setup["tokenizer"].get_vocab()
    vocabulary["animal"], vocabulary["plant"] = vocabulary["plant"], vocabulary["animal"]
    return {"teacher_tokenizer": vocabulary}


def other_special(setup):
    other = copy.deepcopy(setup["tokenizer"])
    other.pad_token = "[UNK]"
    return {"teacher_tokenizer": other}


def empty_row(batch):
    mask = batch["attention_mask"].clone()
    mask[5] = 0
    return {"attention_mask": mask}


def only_padding(batch):
    ids = batch["input_ids"].clone()
    ids[4] = 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def far_too_long(batch):
    more = (0, 900)
    return {name: F.pad(batch[name], more) for name in ("input_ids", "attention_mask")}


def first(loader):
    return next(iter(loader))


IMAGE_FAULTS = {
    "training loader empty": (having(train=[]), "error: the training loader gives no samples"),
    "validation loader empty": (having(validation=[]), "error: the validation loader gives no samples"),
    "no labels": (lambda s: both(s, lambda b: b[0]), "error: training batches have no labels"),
    "all labels ignored": (labelled(lambda y: torch.full_like(y, -100)), "error: all training labels .* -100"),
    "all labels one class": (labelled(lambda y: torch.full_like(y, 3)), "warning: all 512 training labels .*'dress'"),
    "labels from one": (labelled(lambda y: y + 1), r"error: validation sample \d+ has the label 10, expected 0 to 9"),
    "negative label": (labelled(lambda y: y - 1), r"error: training sample \d+ has the label -1"),
    "float labels": (labelled(lambda y: y.float()), r"error: training labels are torch.float32, .*\.long\(\)"),
    "one-hot labels": (labelled(lambda y: F.one_hot(y, 10)), r"labels have the shape \(64, 10\) .* expects \(batch,\)"),
    "labels of fewer samples": (labelled(lambda y: y[:-1]), r"labels have the shape \(63,\) for 64 inputs"),
    "teacher of another class count": (of_classes(12), "error: teacher gives logits .* 12 classes; expected 10"),
    "one-class teacher": (of_classes(1), "error: teacher gives logits .* one class alone"),
    "teacher of non-finite weights": (
        headed(lambda m: m.weight[2, 1].fill_(float("inf"))),
        "error: teacher gives logits that are not finite for validation sample 0",
    ),
    "teacher not finite for one sample": (nan_for_one, "error: teacher gives .* not finite for validation sample 21"),
    "dead teacher": (headed(lambda m: m.weight.zero_()), "error: teacher answers the same whatever the input"),
    "teacher of equal logits": (
        headed(lambda m: (m.weight.copy_(m.weight[:1].expand_as(m.weight)), m.bias.zero_())),
        "error: teacher's logits are all equal",
    ),
    "teacher of one answer": (headed(lambda m: m.bias[4].add_(99)), "warning: teacher answers 'coat' for all"),
    "label order rotated": (
        reorder([*range(1, 10), 0]),
        "error: teacher.* label order",
    ),
    "two labels swapped": (
        reorder([0, 1, 2, 3, 4, 7, 6, 5, 8, 9]),
        "label order .* calls '(sandal|sneaker)'.* 2 classes",
    ),
    "worse than chance": (headed(lambda m: m.weight.neg_()), "error: teacher is right .* worse than chance"),
    "labels shuffled": (
        lambda s: labelled(lambda y: y[torch.randperm(len(y))])(s) | {"teacher_accuracy": 0.8},
        "error: teacher is right in .* 80.0% was claimed",
    ),
    "accuracy not reached": (having(teacher_accuracy=0.99), r"warning: teacher is right in .* 99.0% was claimed"),
    "accuracy in percent": (having(teacher_accuracy=85.0), r"error: teacher_accuracy=85.0, expected a share"),
    "class names reordered": (
        lambda s: {"teacher_classes": (*s["class_names"][:2], *s["class_names"][:1:-1])},
        "error: teacher's classes come in another order: number 2 is 'ankle boot', in the data 'pullover'",
    ),
    "other classes": (
        lambda s: {"teacher_classes": (*s["class_names"][:9], "Hat")},
        "error: teacher does not know the class 'ankle boot', but 'Hat'",
    ),
    "fewer class names": (having(teacher_classes=("cat", "dog")), "error: teacher knows 2 classes, expected 10"),
    "names of fewer classes": (having(class_names=("a", "b")), "error: the data name 2 classes, num_classes=10"),
    "another normalisation": (
        having(teacher_normalisation=((0.5,), (0.5,))),
        r"error: teacher was trained on inputs normalised with mean \(0.5\) and std \(0.5\), the data .* \(0.286",
    ),
    "inputs not normalised": (not_normalised, "warning: training images have mean .* normalise them"),
    "raw pixels": (raw, "warning: training images have whole values up to 255"),
    "inputs constant": (seeing(torch.zeros_like), "error: all 512 training inputs .* the same"),
    "inputs not finite": (seeing(nan_pixel), "error: training sample 3 has inputs that are not finite"),
    "inputs the teacher cannot read": (
        seeing(lambda x: x.expand(-1, 3, -1, -1)),
        r"error: teacher cannot read inputs of shapes \(16, 3, 28, 28\)",
    ),
    "student larger": (
        lambda s: {"student": s["teacher"], "teacher": s["student"]},
        r"warning: student has [\d,]+ parameters, its teacher [\d,]+;",
    ),
    "student is the teacher": (lambda s: {"student": s["teacher"]}, "error: student and teacher share .* parameters"),
    "student has a layer of the teacher": (shared_layer, "error: student and teacher share 1 parameters"),
    "student shares memory": (shared_memory, "error: student and teacher share the memory of 1 parameters"),
    "student frozen": (frozen_student, "error: no parameter of the student requires a gradient"),
    "student of another class count": (
        having(student=nn.Sequential(nn.Flatten(), nn.Linear(784, 2))),
        "error: student gives logits .* 2 classes; expected 10",
    ),
    "teacher without weights": (
        lambda s: {"teacher": copy.deepcopy(s["teacher"]).to("meta")},
        "error: teacher has no weights",
    ),
    "temperature zero": (having(temperature=0.0), "error: temperature=0.0: expected"),
    "temperature ends at zero": (having(temperature={"from": 4.0, "to": 0.0}), "error: temperature=0.0: expected"),
    "temperature too low": (having(temperature=0.005), "warning: temperature=0.005 .* raise the temperature"),
    "temperature too high": (having(temperature=5000.0), "warning: temperature=5000.0 .* lower the temperature"),
    "teacher without effect": (
        having(losses={"soft_labels": 0.0, "cross_entropy": 1.0}),
        "warning: losses=.* no effect",
    ),
    "loss without a teacher": (
        having(teacher=None, losses={"dkd": 1.0}),
        "error: losses has 'dkd' and there is no teacher",
    ),
    "loss unknown": (having(losses={"soft_label": 1.0}), "error: losses='soft_label': did you mean 'soft_labels'"),
    "validated on training samples": (repeated_validation, "warning: .* a leak"),
    "some samples in both": (copied_samples, "warning: 64 of 512 validation inputs .* a leak"),
    "subsets overlap": (overlapping, "warning: 20 validation samples are training samples too, a leak"),
    "batches of one sample": (
        lambda s: {"train": [(b[0][:1], b[1][:1]) for b in batches(s["train"], lambda b: b, 40)]},
        "warning: a training batch has one sample, batch norm",
    ),
    "one sample left over": (one_sample_left, "warning: the last training batch has one sample, batch norm"),
}

TEXT_FAULTS = {
    "foreign tokenizer": (
        swapped_tokens,
        "error: teacher was trained with another tokenizer: 2 tokens differ, '(animal|plant)' is id",
    ),
    "vocabulary of other tokens": (
        having(teacher_tokenizer={"hello": 0}),
        "error: teacher was trained with another tokenizer: 30,522 tokens",
    ),
    "other special tokens": (other_special, r"error: teacher's tokenizer has pad_token='\[UNK\]', the data's"),
    "vocabulary too large": (
        lambda s: {"teacher": bert(32, 0, vocab_size=20000)},
        r"error: tokenizer gives ids up to 30521 .* teacher's embedding has 20000 rows",
    ),
    "token ids too large": (
        lambda s: {"student": bert(16, 0, vocab_size=99), "tokenizer": None},
        r"error: training sample \d+ has the token id \d+, the student's embedding has 99 rows",
    ),
    "a text masked out": (reading(empty_row), "error: training sample 5 has no token to read, its attention_mask"),
    "a text of padding": (reading(only_padding), "error: training sample 4 has no token to read, all of it is padding"),
    "padding not masked": (
        reading(lambda b: {"attention_mask": torch.ones_like(b["input_ids"])}),
        "warning: [0-9,]+ padding tokens .* not masked",
    ),
    "padding all over": (
        lambda s: reading(far_too_long)(s) | {"teacher": None, "student": None},
        "warning: 9.% of the training tokens are padding",
    ),
    "texts too long": (
        reading(far_too_long),
        "error: training texts have 9.. tokens, the teacher's position embedding",
    ),
    "teacher untrained": (lambda s: {"teacher": bert(32, 5)}, "(warning|error): teacher is right .* worse than chance"),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_fault_with_images_is_found(images, fault) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plant, message = IMAGE_FAULTS[fault]
        findings = told(preflight(**{**images, **plant(images)}))
    assert re.search(message, findings), findings


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_fault_with_texts_is_found(texts, fault) -> None:
    with torch.random.fork_rng():
        plant, message = TEXT_FAULTS[fault]
        findings = told(preflight(**{**texts, **plant(texts)}))
    assert re.search(message, findings), findings


@pytest.mark.parametrize("temperature", [1.0, 4.0, 8.0, {"from": 8.0, "to": 1.0}])
def test_sound_images_raise_no_alarm(images, temperature) -> None:
    start = time.process_time()  # what runs beside does not count
    assert told(preflight(**images, temperature=temperature, teacher_accuracy=0.8)) == ""
    assert time.process_time() - start < 10


def test_sound_texts_raise_no_alarm(texts) -> None:
    start = time.process_time()  # what runs beside does not count
    assert told(preflight(**texts)) == ""
    assert told(preflight(**{**texts, "teacher_classes": [f"LABEL_{i}" for i in range(45)]})) == ""
    assert time.process_time() - start < 20


def test_sound_mlp_without_a_teacher_raises_no_alarm(images) -> None:
    student = build_model("mlp", num_classes=10, input_shape=(1, 28, 28))
    assert told(preflight(**{**images, "student": student, "teacher": None})) == ""


def test_masked_tokens_raise_no_alarm_and_all_ignored_do() -> None:
    data = build_data("wordnet_glosses", batch_size=32, objective="mlm")
    data.prepare_data()
    data.setup("fit")

    class Words(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inside = nn.Sequential(nn.Embedding(data.vocab_size, width), nn.Linear(width, data.vocab_size))

        def forward(self, input_ids):
            return self.inside(input_ids)

    setup = {"student": Words(2), "teacher": Words(3), "tokenizer": data.tokenizer, "task": "masked_lm"}
    setup |= {"train": data.train_dataloader(), "validation": data.val_dataloader(), "num_classes": data.num_classes}
    found = preflight(**setup, samples=32)
    assert not [f for f in found if "worse than chance" not in f.message], "the teacher is untrained, all else is sound"
    ignored = labelled(lambda y: torch.full_like(y, -100))(setup)
    assert "error: all validation labels" in told(preflight(**{**setup, **ignored}))


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002


def test_nothing_is_changed(images) -> None:
    student, teacher = copy.deepcopy(images["student"]).train(), copy.deepcopy(images["teacher"])
    teacher.requires_grad_(True)
    next(teacher.children()).train()
    modes = [[m.training for m in x.modules()] for x in (student, teacher)]
    prints = fingerprint(student), fingerprint(teacher)
    inputs, labels = zip(*batches(images["train"], lambda b: b[:2]), strict=True)
    dataset = TensorDataset(torch.cat(inputs), torch.cat(labels))
    own = DataLoader(dataset, 32, shuffle=True, generator=torch.Generator().manual_seed(3))
    place = images["train"].state_dict()

    class Drawing:
        def __iter__(self):
            torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
            return iter(images["validation"])

    states = torch.get_rng_state(), random.getstate(), numpy_state(), own.generator.get_state()
    preflight(**{**images, "student": student, "teacher": teacher, "validation": own})
    preflight(**{**images, "validation": Drawing()})
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:3] == (random.getstate(), numpy_state())
    assert torch.equal(states[3], own.generator.get_state())
    assert images["train"].state_dict() == place
    assert prints == (fingerprint(student), fingerprint(teacher))
    assert modes == [[m.training for m in x.modules()] for x in (student, teacher)]
    assert all(p.grad is None and p.requires_grad for x in (student, teacher) for p in x.parameters())


def test_looks_at_no_more_than_it_is_given(images) -> None:
    taken = []

    def lazily():
        for batch in images["validation"]:
            taken.append(len(batch[0]))
            yield batch

    class Again:
        def __iter__(self):
            return lazily()

    preflight(**{**images, "validation": Again()}, samples=100)
    assert sum(taken) == 128, "two batches of 64, of which 100 are looked at"
    asked = []

    class Slow(nn.Module):
        def forward(self, x):
            asked.append(len(x))
            time.sleep(0.5)
            return x.flatten(1)[:, 300:310] * 9

    preflight(**{**images, "teacher": Slow()}, seconds=1.0)
    assert len(asked) <= 5, "half a second each, of one that is allowed"


def test_one_data_set_split_by_samplers_is_no_leak(images) -> None:
    inputs, labels = zip(*batches(images["train"], lambda b: b[:2], 4), strict=True)
    dataset = TensorDataset(torch.cat(inputs), torch.cat(labels))
    parts = [DataLoader(dataset, 32, sampler=SubsetRandomSampler(range(*ends))) for ends in ((0, 200), (200, 256))]
    assert told(preflight(**{**images, "train": parts[0], "validation": parts[1]})) == ""


def test_errors_come_first(images) -> None:
    found = preflight(**{**images, "temperature": 0.005, "teacher_normalisation": ((0.1,), (0.1,))})
    assert [f.severity for f in found] == ["error", "warning"]
