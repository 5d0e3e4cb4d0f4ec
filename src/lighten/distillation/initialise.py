"""Students that are built from layers of their teacher."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lighten.errors import UserError, did_you_mean, last_line
from lighten.models.transformers import longest, options_of
from lighten.utils.compression import record_, record_of

FAMILIES = ("same", "distilbert")
LAYER_PREFIXES = {
    "Bert": "bert.encoder.layer.",
    "Roberta": "roberta.encoder.layer.",
    "DistilBert": "distilbert.transformer.layer.",
}
HEADS = {"SequenceClassification": "classification", "MaskedLM": "masked_lm"}
TEACHERS = {f"{kind}For{head}": (LAYER_PREFIXES[kind], HEADS[head]) for kind in LAYER_PREFIXES for head in HEADS}
"""Class of ``transformers`` -> (what the names of its layers' weights start with, head of the builder)."""

TO_DISTILBERT = (
    ("bert.embeddings.", "distilbert.embeddings."),
    ("bert.encoder.layer.", "distilbert.transformer.layer."),
    (".attention.self.query.", ".attention.q_lin."),
    (".attention.self.key.", ".attention.k_lin."),
    (".attention.self.value.", ".attention.v_lin."),
    (".attention.output.dense.", ".attention.out_lin."),
    (".attention.output.LayerNorm.", ".sa_layer_norm."),
    (".intermediate.dense.", ".ffn.lin1."),
    (".output.dense.", ".ffn.lin2."),
    (".output.LayerNorm.", ".output_layer_norm."),
    ("bert.pooler.dense.", "pre_classifier."),
    ("cls.predictions.transform.dense.", "vocab_transform."),
    ("cls.predictions.transform.LayerNorm.", "vocab_layer_norm."),
    ("cls.predictions.decoder.", "vocab_projector."),
)
"""Parts of the names of BERT's weights, and what DistilBERT calls them; the first ones are replaced first."""


def student_from_teacher(
    teacher: nn.Module, *, layers: int | str | Sequence[int] = "alternate", family: str = "same"
) -> nn.Module:
    """Return a student that starts with some of its teacher's layers, its embeddings and its head.

    The student is a fresh module in train mode: it shares no storage with the teacher, whose dtype and device it
    keeps, and every parameter requires gradients. Its record says how to build it, so ``lighten.save`` and ``load``
    work. For fewer nodes in each layer see :func:`lighten.pruning.narrow.shrink_feed_forward`.

    With all layers, ``"same"`` computes exactly what the teacher does. ``"distilbert"`` does so for hidden states and
    for a masked LM's logits, up to rounding, where all token types are 0: DistilBERT has none, so that BERT's
    embedding of type 0 is added to each position's. BERT's pooler becomes ``pre_classifier``, followed by a ReLU
    instead of a tanh. No classifier could then be exact, so the classifier starts with new random weights.

    Args:
        teacher: BERT or RoBERTa (or DistilBERT) of ``transformers`` that ends in sequence classification or masked LM.
        layers: which ones, by :func:`choose_layers`.
        family: ``"same"``, the teacher's own class, or ``"distilbert"``, from BERT only: RoBERTa counts positions in
            each sample, starting after its padding token, which DistilBERT cannot do.

    Raises:
        UserError: if the teacher is of another kind or does not fit its own config, or a setting is out of range.

    Source: Sanh et al., DistilBERT, a distilled version of BERT (2019), section 3.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
        >>> student = student_from_teacher(BertForMaskedLM(BertConfig(**sizes)), family="distilbert")
        >>> type(student).__name__, student.config.n_layers
        ('DistilBertForMaskedLM', 6)
    """
    if family not in FAMILIES:
        raise UserError(f"family={family!r}; {did_you_mean(str(family), FAMILIES)}")
    prefix, head = _kind(teacher)
    known: Any = teacher
    kept = choose_layers(layers, known.config.num_hidden_layers)
    state = dict(_selected(teacher.state_dict(), prefix, kept))
    if family == "distilbert" and not prefix.startswith("distilbert"):
        student = _built(_distilbert(known, len(kept), head), known)
        fresh = {key: tensor for key, tensor in student.state_dict().items() if key.startswith("classifier.")}
        state = dict(_renamed(state)) | fresh
    else:
        config = copy.deepcopy(known.config)
        config.num_hidden_layers = len(kept)
        student = _built(type(known)(config), known)
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        reason = last_line(error)
        raise UserError(
            f"{type(teacher).__name__}: its weights are not those of its config ({reason}); give a teacher that is not "
            "masked, quantized or cut"
        ) from None
    return _described(student, known, head)


def choose_layers(layers: int | str | Sequence[int], depth: int) -> list[int]:
    """Return which of ``depth`` layers to keep, in order.

    Args:
        layers: a number n, spread evenly, the first and the last included: layer ``round(i (depth - 1) / (n - 1))`` for
            i = 0, …, n - 1, halves to the even side, and the first alone for n = 1; ``"alternate"``, as n = depth / 2,
            rounded up; or the layers themselves, counted from 0. Of 12 layers, ``"alternate"`` keeps DistilBERT's
            0, 2, 4, 7, 9 and 11; of 6, it keeps 0, 2 and 5.
        depth: the teacher's layers.

    Raises:
        UserError: if there are not as many layers, or the list is empty, not ascending, or out of range.
    """
    if isinstance(layers, str):
        if layers != "alternate":
            raise UserError(f"layers={layers!r}; {did_you_mean(layers, ['alternate'])}, a number, or a list of layers")
        layers = (depth + 1) // 2
    if isinstance(layers, int) and not isinstance(layers, bool):
        if not 1 <= layers <= depth:
            raise UserError(f"layers={layers}: the teacher has {depth} layers; give a number from 1 to {depth}")
        return [round(i * (depth - 1) / max(layers - 1, 1)) for i in range(layers)]
    expected = f"expected ascending numbers from 0 to {depth - 1}, each once"
    if not isinstance(layers, Sequence) or not all(isinstance(i, int) and not isinstance(i, bool) for i in layers):
        raise UserError(f"layers={layers!r}; {expected}")
    kept: list[int] = [*layers]
    outside = [i for i in kept if not 0 <= i < depth]
    if outside:
        raise UserError(f"layers={kept}: the teacher has no layer {outside[0]}; {expected}")
    if not kept or kept != sorted(set(kept)):
        raise UserError(f"layers={kept}; {expected}")
    return kept


def _kind(teacher: nn.Module) -> tuple[str, str]:
    import transformers

    for name, kind in TEACHERS.items():
        if isinstance(teacher, getattr(transformers, name)):
            if getattr(teacher.config, "is_decoder", False):
                raise UserError(
                    f"{type(teacher).__name__} with is_decoder=True reads from left to right; give an encoder"
                )
            return kind
    raise UserError(
        f"{type(teacher).__name__} is no teacher whose layers can be copied; expected one of: {', '.join(TEACHERS)}"
    )


def _selected(state: Mapping[str, Tensor], prefix: str, kept: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the layers ``kept``, renumbered, and all that belong to no layer."""
    places = {old: new for new, old in enumerate(kept)}
    for key, tensor in state.items():
        if not key.startswith(prefix):
            yield key, tensor
            continue
        number, rest = key.removeprefix(prefix).split(".", 1)
        if int(number) in places:
            yield f"{prefix}{places[int(number)]}.{rest}", tensor


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield BERT's weights by DistilBERT's names, the embedding of token type 0 folded into the positions'."""
    for key, tensor in state.items():
        if key.endswith("token_type_embeddings.weight") or key == "cls.predictions.bias":
            continue  # the second is the decoder's bias under another name
        if key.endswith("position_embeddings.weight"):
            tensor = tensor + state["bert.embeddings.token_type_embeddings.weight"][0]
        for theirs, ours in TO_DISTILBERT:
            key = key.replace(theirs, ours)
        yield key, tensor


def _distilbert(teacher: Any, depth: int, head: str) -> Any:
    """Return a fresh DistilBERT of the teacher's widths.

    Raises:
        UserError: if DistilBERT has no words for what the teacher computes.
    """
    import transformers

    config = teacher.config
    if config.model_type != "bert":
        raise UserError(
            f"family='distilbert' is for BERT, {type(teacher).__name__} counts positions otherwise; use 'same'"
        )
    if config.layer_norm_eps != 1e-12:
        given = f"layer_norm_eps={config.layer_norm_eps}"
        raise UserError(f"family='distilbert': the teacher's {given}, DistilBERT's is always 1e-12; use family='same'")
    dropout = config.hidden_dropout_prob
    made = transformers.DistilBertConfig(
        vocab_size=config.vocab_size, max_position_embeddings=config.max_position_embeddings, n_layers=depth,
        n_heads=config.num_attention_heads, dim=config.hidden_size, hidden_dim=config.intermediate_size,
        dropout=dropout, attention_dropout=config.attention_probs_dropout_prob, activation=config.hidden_act,
        seq_classif_dropout=dropout if config.classifier_dropout is None else config.classifier_dropout,
        initializer_range=config.initializer_range, pad_token_id=config.pad_token_id, bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id, tie_word_embeddings=config.tie_word_embeddings, id2label=config.id2label,
        label2id=config.label2id, problem_type=config.problem_type,
    )  # fmt: skip
    made._attn_implementation = config._attn_implementation
    names = {"classification": "DistilBertForSequenceClassification", "masked_lm": "DistilBertForMaskedLM"}
    return getattr(transformers, names[head])(made)


def _built(student: Any, teacher: Any) -> Any:
    return student.to(device=teacher.device, dtype=teacher.dtype)


def _described(student: Any, teacher: Any, head: str) -> nn.Module:
    """Say, as ``build_model`` does, how to build the student again."""
    spec = record_of(teacher).spec or {}
    classes = student.config.vocab_size if head == "masked_lm" else student.config.num_labels
    own = {
        "name": "transformers",
        "num_classes": spec.get("num_classes", classes),
        "input_shape": list(spec.get("input_shape", [longest(student)])),
        "options": options_of(student, head),
    }
    record_(student, spec=own)
    return student
