import copy
import itertools
import json
import subprocess
import sys

import pytest
import torch
import transformers as hf
from torch import nn

import lighten
from lighten.distillation.initialise import choose_layers, student_from_teacher
from lighten.errors import UserError
from lighten.utils.compression import record_of

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 12,
    "max_position_embeddings": 24, "initializer_range": 0.3,
}  # fmt: skip
KINDS = {
    "bert": (hf.BertConfig, hf.BertForSequenceClassification),
    "bert_lm": (hf.BertConfig, hf.BertForMaskedLM),
    "roberta": (hf.RobertaConfig, hf.RobertaForSequenceClassification),
    "roberta_lm": (hf.RobertaConfig, hf.RobertaForMaskedLM),
    "distilbert_lm": (hf.DistilBertConfig, hf.DistilBertForMaskedLM),
}


def make(kind, **changes):
    torch.manual_seed(0)
    config, model = KINDS[kind]
    sizes = SIZES if config is not hf.DistilBertConfig else SIZES | {"hidden_dim": 48}
    made = model(config(**sizes | ({"pad_token_id": 1} if "roberta" in kind else {}) | {"num_labels": 5} | changes))
    with torch.no_grad():  # biases and norms that matter, and a pooler that saturates nowhere
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


def tokens(vocabulary=60, length=17, pad=1):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocabulary, (4, length), generator=draw)
    mask = torch.ones_like(ids)
    for row, real in enumerate((length, length - 1, 9, 1)):
        ids[row, real:], mask[row, real:] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def outputs(model, inputs):
    """Return the last hidden states of the real tokens, (tokens, width), and the logits."""
    result = model.eval()(**inputs, output_hidden_states=True)
    return result.hidden_states[-1][inputs["attention_mask"].bool()], result.logits


def far(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_of_the_same_family_compute_the_same_to_the_bit(kind):
    teacher, inputs = make(kind).double(), tokens()
    student = student_from_teacher(teacher, layers=12)
    assert type(student) is type(teacher)
    for ours, theirs in zip(outputs(student, inputs), outputs(teacher, inputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["bert", "bert_lm"])
def test_all_layers_as_distilbert_have_the_same_hidden_states(kind, dtype, most):
    teacher, inputs = make(kind).to(dtype), tokens()
    student = student_from_teacher(teacher, layers=12, family="distilbert")
    assert student.config.model_type == "distilbert"
    (hidden, logits), (wanted, wanted_logits) = outputs(student, inputs), outputs(teacher, inputs)
    assert hidden.dtype == dtype
    assert far(hidden, wanted) <= most
    if kind == "bert_lm":
        real = inputs["attention_mask"].bool()
        assert far(logits[real], wanted_logits[real]) <= 10 * most


def test_minilm_as_distilbert_and_as_itself():
    torch.manual_seed(0)
    teacher = lighten.build_model("transformers", num_classes=4, input_shape=(24,), path="minilm").eval()
    inputs = tokens(vocabulary=30_000, length=24, pad=0)
    wanted, logits = outputs(teacher, inputs)
    same = outputs(student_from_teacher(teacher, layers=6), inputs)
    assert torch.equal(same[0], wanted)
    assert torch.equal(same[1], logits)
    assert far(outputs(student_from_teacher(teacher, layers=6, family="distilbert"), inputs)[0], wanted) <= 1e-5
    teacher = teacher.double()
    student = student_from_teacher(teacher, layers=6, family="distilbert")
    assert far(outputs(student, inputs)[0], outputs(teacher, inputs)[0]) <= 1e-12
    half = student_from_teacher(teacher)
    assert half.config.num_hidden_layers == 3
    for ours, theirs in zip(half.bert.encoder.layer, (0, 2, 5), strict=True):
        assert torch.equal(ours.output.dense.weight, teacher.bert.encoder.layer[theirs].output.dense.weight)


def test_folding_is_what_makes_it_exact():
    teacher, inputs = make("bert_lm").double(), tokens()
    student = student_from_teacher(teacher, layers=12, family="distilbert")
    student.distilbert.embeddings.position_embeddings.weight.data.copy_(
        teacher.bert.embeddings.position_embeddings.weight
    )
    assert far(outputs(student, inputs)[0], outputs(teacher, inputs)[0]) > 0.1


def test_the_pooler_goes_along_and_the_classifier_behind_it_is_fresh():
    teacher = make("bert")
    student = student_from_teacher(teacher, family="distilbert")
    assert torch.equal(student.pre_classifier.weight, teacher.bert.pooler.dense.weight)
    assert torch.equal(student.pre_classifier.bias, teacher.bert.pooler.dense.bias)
    assert student.classifier.weight.shape == teacher.classifier.weight.shape
    assert far(student.classifier.weight, teacher.classifier.weight) > 0.1


@pytest.mark.parametrize("family", ["same", "distilbert"])
def test_the_layers_that_were_asked_for_are_there(family):
    teacher = make("bert_lm")
    student = student_from_teacher(teacher, layers=[1, 5, 11], family=family)
    ours = [layer.ffn.lin1 if family == "distilbert" else layer.intermediate.dense for layer in layers_of(student)]
    theirs = [teacher.bert.encoder.layer[i].intermediate.dense for i in (1, 5, 11)]
    assert student.config.num_hidden_layers == len(ours) == 3
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, theirs, strict=True))


def layers_of(model):
    return model.distilbert.transformer.layer if hasattr(model, "distilbert") else model.bert.encoder.layer


@pytest.mark.parametrize("family", ["same", "distilbert"])
def test_the_student_is_its_own(family):
    teacher = make("bert_lm").requires_grad_(False)
    config = copy.deepcopy(teacher.config.to_dict())
    weights = copy.deepcopy(teacher.state_dict())
    student = student_from_teacher(teacher, layers=12, family=family)
    theirs = {t.untyped_storage().data_ptr() for t in (*teacher.parameters(), *teacher.buffers())}
    assert not theirs & {t.untyped_storage().data_ptr() for t in (*student.parameters(), *student.buffers())}
    assert all(p.requires_grad for p in student.parameters())
    assert all(m.training for m in student.modules())
    assert student.get_input_embeddings().weight is student.get_output_embeddings().weight
    assert student.config is not teacher.config
    nn.init.zeros_(student.get_input_embeddings().weight)
    assert not teacher.training
    assert teacher.config.to_dict() == config
    assert all(torch.equal(v, weights[k]) for k, v in teacher.state_dict().items())


def test_untied_embeddings_stay_untied():
    teacher, inputs = make("bert_lm", tie_word_embeddings=False).double(), tokens()
    student = student_from_teacher(teacher, layers=12, family="distilbert")
    assert student.get_input_embeddings().weight is not student.get_output_embeddings().weight
    real = inputs["attention_mask"].bool()
    assert far(outputs(student, inputs)[1][real], outputs(teacher, inputs)[1][real]) <= 1e-11


@pytest.mark.parametrize("family", ["same", "distilbert"])
def test_the_way_to_attend_goes_along(family):
    teacher = make("bert", attn_implementation="eager")
    assert student_from_teacher(teacher, family=family).config._attn_implementation == "eager"


def test_dropout_goes_along():
    teacher = make("bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, classifier_dropout=0.4)
    student = student_from_teacher(teacher, family="distilbert")
    assert student.distilbert.embeddings.dropout.p == 0.3
    assert student.distilbert.transformer.layer[0].attention.dropout.p == 0.2
    assert student.dropout.p == 0.4


@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, "same") for kind in KINDS), ("bert", "distilbert"), ("bert_lm", "distilbert")],
)
@pytest.mark.parametrize("built", [True, False], ids=["built_by_name", "of_transformers"])
def test_comes_back_from_its_folder(kind, family, built, tmp_path):
    teacher, inputs = make(kind), tokens()
    length = 22 if "roberta" in kind else 24
    if built:
        options = {"config": json.loads(teacher.config.to_json_string())}
        options["head"] = "masked_lm" if kind.endswith("lm") else "classification"
        classes, length = 60 if kind.endswith("lm") else 5, 17
        teacher = lighten.build_model("transformers", num_classes=classes, input_shape=(17,), **options)
    student = student_from_teacher(teacher, family=family)
    assert record_of(student).spec["input_shape"] == [length]
    assert record_of(student).spec["num_classes"] == (60 if kind.endswith("lm") else 5)
    lighten.save(student, tmp_path / "lighten")
    again = lighten.load(tmp_path / "lighten")
    assert torch.equal(outputs(again, inputs)[1], outputs(student, inputs)[1])

    student.save_pretrained(tmp_path / "hf")
    theirs = type(student).from_pretrained(tmp_path / "hf")
    assert torch.equal(outputs(theirs, inputs)[1], outputs(student, inputs)[1])


@pytest.mark.parametrize(
    ("layers", "depth", "kept"),
    [
        ("alternate", 12, [0, 2, 4, 7, 9, 11]),  # DistilBERT
        ("alternate", 6, [0, 2, 5]),
        ("alternate", 5, [0, 2, 4]),
        ("alternate", 2, [0]),
        ("alternate", 1, [0]),
        (3, 12, [0, 6, 11]),
        (2, 6, [0, 5]),
        (1, 6, [0]),
        ([0, 3], 6, [0, 3]),
        ((5,), 6, [5]),
    ],
)
def test_layers(layers, depth, kept):
    assert choose_layers(layers, depth) == kept


def test_any_number_of_layers_is_spread_over_all():
    for depth in range(1, 26):
        assert choose_layers(depth, depth) == list(range(depth))
        for count in range(2, depth + 1):
            kept = choose_layers(count, depth)
            assert len(set(kept)) == count
            assert (kept[0], kept[-1]) == (0, depth - 1)
            gaps = {b - a for a, b in itertools.pairwise(kept)}
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("alternat", "layers='alternat'; did you mean 'alternate'?"),
        (13, "layers=13: the teacher has 12 layers; give a number from 1 to 12"),
        (0, "layers=0: the teacher has 12 layers"),
        (True, "layers=True; expected ascending numbers from 0 to 11"),
        ([], "layers=[]; expected ascending numbers"),
        ([0, 12], "layers=[0, 12]: the teacher has no layer 12; expected ascending numbers from 0 to 11"),
        ([-1, 3], "the teacher has no layer -1"),
        ([3, 1], "layers=[3, 1]; expected ascending numbers"),
        ([1, 1], "layers=[1, 1]; expected ascending numbers from 0 to 11, each once"),
        ([0.0, 1], "layers=[0.0, 1]; expected"),
        (None, "layers=None; expected"),
    ],
)
def test_bad_layers_are_told_in_one_line(layers, says):
    with pytest.raises(UserError) as caught:
        choose_layers(layers, 12)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "options", "says"),
    [
        (lambda: nn.Linear(2, 2), {}, "Linear is no teacher whose layers can be copied; expected one of: BertFor"),
        (lambda: hf.BertModel(hf.BertConfig(**SIZES)), {}, "BertModel is no teacher"),
        (lambda: make("bert"), {"family": "distilbart"}, "family='distilbart'; did you mean 'distilbert'?"),
        (lambda: make("roberta"), {"family": "distilbert"}, "RobertaForSequenceClassification counts positions"),
        (lambda: make("bert", layer_norm_eps=1e-5), {"family": "distilbert"}, "layer_norm_eps=1e-05, DistilBERT's is"),
        (lambda: make("bert", is_decoder=True), {}, "reads from left to right; give an encoder"),
        (lambda: cut(make("bert")), {}, "its weights are not those of its config"),
        (lambda: make("bert"), {"layers": 13}, "layers=13: the teacher has 12 layers"),
    ],
)
def test_bad_teachers_and_settings_are_told_in_one_line(teacher, options, says):
    with pytest.raises(UserError) as caught:
        student_from_teacher(teacher(), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def cut(model):
    model.bert.encoder.layer[0].intermediate.dense = nn.Linear(32, 7)
    return model


def test_importing_it_imports_no_transformers():
    code = "import sys, lighten.distillation.initialise; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
