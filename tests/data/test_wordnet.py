import pytest

from lighten.data.wordnet import CLASSES, FILES, is_test, parse_line, read_glosses
from lighten.errors import UserError


def synset(gloss, label=5, kind="n"):
    return f"00001740 {label:02d} {kind} 01 entity 0 001 ~ 00001930 n 0000 | {gloss}  "


@pytest.mark.parametrize(
    ("gloss", "text"),
    [
        ("a cat", "a cat"),
        ('fall down; "he fell"; "they fall"', "fall down"),
        ("wide; deep;  and  open", "wide; deep; and open"),
        ('with chemicals;"chemically fertilized"', "with chemicals"),
        ('speak, "can you?"', "speak"),
        ('by force: "She forced him"- Anon', "by force"),
        ('a summary; as in e.g. "a news roundup"', 'a summary; as in e.g. "a news roundup"'),
        ('"only an example"', ""),
    ],
)
def test_the_definition_ends_where_examples_begin(gloss, text):
    assert parse_line(synset(gloss)) == (text, 5)


def test_classes_are_numbered_as_lexicographer_files():
    assert len(CLASSES) == len(set(CLASSES)) == 45
    known = {0: "adj.all", 2: "adv.all", 3: "noun.Tops", 5: "noun.animal", 28: "noun.time", 29: "verb.body"}
    known |= {38: "verb.motion", 43: "verb.weather", 44: "adj.ppl"}
    assert {number: CLASSES[number] for number in known} == known


def write(folder, **lines):
    for name in FILES:
        rows = lines.get(name.removeprefix("data."), [])
        (folder / name).write_text("\n".join(["  1 This software and database is provided", *rows]) + "\n")
    return folder


def test_every_definition_counts_once_and_those_in_two_classes_not_at_all(tmp_path):
    folder = write(
        tmp_path,
        noun=[synset("a cat"), synset("a dog", 18), synset("a cat"), synset("move")],
        verb=[synset("move", 38, "v"), synset('"nothing"', 38, "v")],
        adj=[synset('wide; "a wide road"', 0, "s")],
    )
    assert sorted(read_glosses(folder)) == [("a cat", 5), ("a dog", 18), ("wide", 0)]


def test_the_order_is_that_of_the_texts_alone(tmp_path):
    lines = [synset(f"gloss {i}") for i in range(20)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert read_glosses(write(tmp_path / "a", noun=lines)) == read_glosses(write(tmp_path / "b", verb=lines[::-1]))


def test_one_gloss_in_ten_is_for_testing():
    chosen = [is_test(f"gloss {i}") for i in range(20_000)]
    assert sum(chosen) / len(chosen) == pytest.approx(26 / 256, abs=0.007)


def test_bad_files_are_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"data\.noun cannot be read \(No such file or directory\); give the folder"):
        read_glosses(tmp_path)
    for line in ("no synset", synset("x", 45), "00001740 05 n 01 entity", "0174 x y | z"):
        with pytest.raises(UserError, match=r"data\.verb, line 2 is no synset; give the folder") as caught:
            read_glosses(write(tmp_path, verb=[line]))
        assert "\n" not in str(caught.value)
    (tmp_path / "data.adj").write_bytes(b"\xff\xfe")
    write(tmp_path)
    (tmp_path / "data.adv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"data\.adv cannot be read \(no UTF-8\)"):
        read_glosses(tmp_path)
