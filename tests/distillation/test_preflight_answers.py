"""What a teacher's answers tell of it: each model here is a table of logits, and a sample's input its row."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.distillation.preflight_answers import find_answer_problems
from lighten.distillation.preflight_samples import LoaderSamples, collect
from lighten.tasks import task_of
from lighten.utils.batch import BatchFormat

NAMES = ("cat", "dog", "cow", "hen")
LABELS = torch.arange(80) % 4


class Table(nn.Module):
    """Answers sample number n with row n."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.calls = logits, 0

    def forward(self, numbers):
        self.calls += 1
        return self.logits[numbers.long().flatten()]


def sure(answers, margin=4.0):
    """Logits of ``margin`` for the answer, and a little of the others that differs by sample."""
    return F.one_hot(answers, 4) * margin + torch.arange(len(answers))[:, None] % 5 * torch.tensor([0.0, 0.1, 0.2, 0.1])


def problems(logits, labels=LABELS, *, who="teacher", task="classification", claim=None, temperature=1.0, **changed):
    model = Table(logits)
    part = LoaderSamples("validation")
    collect(part, [(torch.arange(float(len(labels)))[:, None], labels)], 1000, math.inf, BatchFormat())
    options = {"end": math.inf, "classes": 4, "names": NAMES, "labelled": True} | changed
    found = find_answer_problems(who, model, part, task=task_of(task), temperature=temperature, claim=claim, **options)
    lines = [f"{p.severity}: {p.message}" for p in found]
    problems.calls = model.calls
    return lines


def test_a_sound_teacher_raises_no_alarm():
    assert problems(sure(LABELS), claim=1.0) == []
    assert problems.calls == math.ceil(80 / 16)
    assert problems(sure(LABELS), end=0.0) == []
    assert problems.calls == 1, "the time was up"
    assert problems(sure(LABELS), who="student") == []
    assert problems.calls == 1, "a student is run on a few samples"


@pytest.mark.parametrize("sample", [0, 16, 79])
def test_the_sample_that_is_not_finite_is_named(sample):
    logits = sure(LABELS)
    logits[sample, 2] = math.inf
    (found,) = problems(logits)
    assert found.startswith(f"error: teacher gives logits that are not finite for validation sample {sample};")


@pytest.mark.parametrize(
    ("logits", "says"),
    [
        (torch.zeros(80, 1), "shape (16, 1), one class alone, which teaches nothing; expected 4 a sample;"),
        (torch.zeros(80, 5), "shape (16, 5), 5 classes; expected 4 a sample;"),
        (torch.zeros(80, 2, 4), "shape (16, 2, 4), 4 classes; expected 4 a sample;"),
    ],
)
def test_logits_of_another_shape_are_found(logits, says):
    (found,) = problems(logits, who="student")
    assert found.startswith(f"error: student gives logits of {says}")


def test_a_model_that_cannot_read_the_inputs_is_told_with_its_own_words():
    (found,) = problems(torch.zeros(10, 4))
    assert found.startswith("error: teacher cannot read inputs of shapes (16, 1) (IndexError: ")


def test_answers_that_tell_nothing_are_found():
    equal = torch.arange(80.0)[:, None].expand(80, 4)
    assert problems(equal)[0].startswith("error: teacher's logits are all equal,")
    same = torch.tensor([[0.0, 1.0, 2.0, 1.0]]).expand(80, 4)
    assert problems(same)[0].startswith("error: teacher answers the same whatever the input,")
    one = same.clone()
    one[33, 0] += 1
    assert not [line for line in problems(one) if line.startswith("error")], "one that differs is enough"
    assert problems(equal, torch.randn(80, 4), task="regression") == [], "outputs may be equal"


def sharpest(logits, temperature):
    return (logits / temperature).double().softmax(1).amax(1)


def test_the_temperature_leaves_soft_labels_neither_hard_nor_flat():
    hard = math.log(3 * 0.999 / 0.001)  # a lead over three others of which a softmax makes 0.999
    logits = F.one_hot(LABELS, 4).float()
    for margin, found in ((hard - 0.01, 0), (hard + 0.01, 1)):
        assert bool((sharpest(logits * margin, 1.0) > 0.999).all()) == found
        lines = problems(logits * margin)
        assert len(lines) == found
    assert lines[0].startswith("warning: temperature=1.0 leaves 100% of the teacher's soft labels as hard as labels")
    flat = 1 / math.log(3 * 0.2525 / (1 - 0.2525))  # of a lead of one, that gives 0.2525: a hundredth above a quarter
    for temperature, found in ((flat * 0.99, 0), (flat * 1.01, 1)):
        assert bool((sharpest(logits, temperature) * 4 - 1 < 0.01).all()) == found
        lines = problems(logits, temperature=temperature)
        assert len(lines) == found
    assert lines[0].startswith(f"warning: temperature={temperature} makes all soft labels uniform")
    changing = {"from": 1.0, "to": 100.0}  # is judged where it is hard, and where it is flat
    assert problems(logits * (hard - 0.01), temperature=changing) == []
    assert problems(logits * 200, temperature=changing) == []
    assert len(problems(logits * 1000, temperature=changing)) == 1
    assert problems(logits, temperature=-1.0) == [], "it is refused elsewhere"


def test_worse_than_chance_is_two_standard_errors_below():
    error = math.sqrt(0.25 * 0.75 / 80)
    edge = (0.25 - 2 * error) * 80  # of 80 that may be right
    for right, found in ((math.floor(edge), 1), (math.ceil(edge), 0)):
        answers = (LABELS + 1 + torch.arange(80) // 4 % 3) % 4  # wrong, in turn by each other class
        answers[:right] = LABELS[:right]
        lines = problems(sure(answers))
        assert len(lines) == found
        assert not found or lines[0].startswith(f"error: teacher is right in {right / 80:.1%} of 80 validation samples")


def test_a_teacher_below_the_commonest_class_is_found():
    labels = torch.where(torch.arange(80) < 60, 2, LABELS)
    common = int((labels == 2).sum())
    answers = labels.clone()
    answers[:44] = torch.tensor([0, 1, 3]).repeat(15)[:44]
    (found,) = problems(sure(answers), labels)
    assert found.startswith("warning: teacher is right in 45.0% of 80 validation samples, worse than chance:")
    assert f"{common / 80:.1%} are 'cow'" in found


def test_classes_that_are_swapped_are_named():
    swapped = torch.tensor([0, 3, 2, 1])[LABELS]
    (found,) = problems(sure(swapped))
    assert "20 of 20 validation samples it calls 'dog' are labelled 'hen', 2 classes are swapped so" in found
    halfway = torch.where(torch.arange(80) < 44, swapped, LABELS)
    assert problems(sure(halfway)) == [], "11 of 20 are no more than three fifths"


@pytest.mark.parametrize(
    ("claim", "severity"), [(0.9, None), (0.98, "warning"), (1.0, "warning"), (90, "error: teacher_accuracy=90,")]
)
def test_what_was_claimed_is_held_against_what_is_right(claim, severity):
    answers = torch.where(torch.arange(80) % 16 < 3, (LABELS + torch.arange(80) // 16 % 3 + 1) % 4, LABELS)
    assert int((answers == LABELS).sum()) == 65
    found = problems(sure(answers), claim=claim)
    assert len(found) == (severity is not None)
    assert severity is None or found[0].startswith(severity)
    assert claim > 1 or not found or "81.2% of 80 validation samples" in found[0]


def test_too_few_and_unlabelled_samples_are_not_scored():
    wrong = (LABELS + 1) % 4
    assert problems(sure(wrong)) != []
    assert problems(sure(wrong), LABELS[:29]) == []
    assert problems(sure(wrong), torch.where(torch.arange(80) < 51, -100, LABELS)) == []
    assert problems(sure(wrong), labelled=False) == []


def test_one_answer_for_all_is_found():
    (found,) = problems(sure(torch.full((80,), 3)))
    assert found.startswith("warning: teacher answers 'hen' for all 80 validation samples, expected several classes;")


def test_of_texts_the_masked_tokens_alone_are_scored():
    answers = torch.arange(160).view(80, 2) % 4
    labels = torch.stack([torch.full((80,), -100), answers[:, 1]], 1)
    logits = sure(answers.flatten()).view(80, 2, 4)
    assert problems(logits, labels, task="masked_lm", claim=1.0) == []
    labels[:, 1] = (labels[:, 1] + 2) % 4
    (found,) = problems(logits, labels, task="masked_lm")
    assert found.startswith("error: teacher is right in 0.0% of 80 validation tokens, worse than chance (25.0%)")


def boxes(samples=80):
    """One box a picture, of class 0 to 3, that moves with its number."""
    place = 0.2 + 0.6 * torch.arange(samples) / samples
    kinds = torch.arange(samples) % 4
    return torch.stack([kinds.float(), place, 1 - place, 0.1 + place / 4, torch.full((samples,), 0.2)], -1)[:, None]


def seeing(labels):
    logits = sure(labels[:, 0, 0].long(), 6.0) - 3
    return torch.cat([labels[..., 1:], logits[:, None]], -1)


def test_a_detector_is_judged_by_what_it_finds():
    labels = boxes()
    assert problems(seeing(labels), labels, task="detection") == []
    elsewhere = seeing(labels)
    elsewhere[..., 1] = (elsewhere[..., 1] + 0.5) % 1
    (found,) = problems(elsewhere, labels, task="detection")
    assert found.startswith("warning: teacher's mAP is 0.00% on 80 validation samples, it finds nothing")
    (found,) = problems(seeing(labels), labels, task="detection", classes=5)
    assert found.startswith("error: teacher gives answers of shape (16, 1, 8), 4 classes; expected 5 a sample")
    (found,) = problems(seeing(labels)[:1].expand(80, -1, -1), labels, task="detection")
    assert "dead" in found
