"""A BERT-like tokenizer of a few dozen words, for tests that read no pretrained one."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "of", "in", "the", *(f"w{i}" for i in range(40)))


def save_tokenizer(folder, *, types=True, words=WORDS, pad=True, mask=True, longest=64):
    """Save a BERT-like word tokenizer: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP]."""
    inside = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *words))}, unk_token="[UNK]"))
    inside.normalizer = normalizers.Lowercase()
    inside.pre_tokenizer = pre_tokenizers.Whitespace()
    inside.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"pad_token": "[PAD]"} if pad else {}
    special |= {"mask_token": "[MASK]"} if mask else {}
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inside, model_max_length=longest, model_input_names=names, **special
    )
    tokenizer.save_pretrained(folder)
    return str(folder)
