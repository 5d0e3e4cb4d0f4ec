"""Glosses of WordNet (Fellbaum 1998) from its data files, and the lexicographer class of each."""

import re
from pathlib import Path

from lighten.data.text_part import text_hash
from lighten.errors import UserError

CLASSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
"""By lexicographer file number, 0 to 44, as in the manual page lexnames(5WN)."""

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_EXAMPLES = re.compile(r'(?:^|[;,:])\s*"')
"""Where they begin: a quotation mark after a sign; elsewhere it is part of the definition."""

_ADVICE = "give the folder of WordNet's data files, such as that of Debian's wordnet-base, /usr/share/wordnet"


def read_glosses(folder: str | Path) -> list[tuple[str, int]]:
    """Return every definition once, with its class, in the order of a hash of the text.

    A definition that stands in two classes is left out: it has no right answer.

    Raises:
        UserError: if a file is missing or none of WordNet's.
    """
    found: dict[str, set[int]] = {}
    for name in FILES:
        path = Path(folder) / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8"
            raise UserError(f"{path} cannot be read ({reason}); {_ADVICE}") from error
        for number, line in enumerate(lines, 1):
            if line.startswith("  "):  # the licence, at the head of each file
                continue
            try:
                text, label = parse_line(line)
            except (ValueError, IndexError) as error:
                raise UserError(f"{path}, line {number} is no synset; {_ADVICE}") from error
            if text:
                found.setdefault(text, set()).add(label)
    rows = [(text, min(classes)) for text, classes in found.items() if len(classes) == 1]
    return sorted(rows, key=lambda row: text_hash(row[0]))


def parse_line(line: str) -> tuple[str, int]:
    """Return definition and lexicographer file number of a line as wndb(5WN) describes it.

    The definition is what stands before the first quoted example. Examples show the word in use, which a definition
    does not tell, and verbs and adjectives have far more of them than nouns: their quotation marks would betray the
    class.

    Raises:
        ValueError: if the line is no synset.
    """
    head, bar, gloss = line.partition("|")
    label = int(head.split(" ", 2)[1])
    if not bar or not 0 <= label < len(CLASSES):
        raise ValueError(line)
    definition = _EXAMPLES.split(gloss, maxsplit=1)[0]
    return " ".join(definition.split()).rstrip(" ;:"), label


def is_test(text: str) -> bool:
    """Return whether a gloss belongs to the test part: one in ten, by a hash of its text."""
    return text_hash(text)[-1] * 10 < 256
