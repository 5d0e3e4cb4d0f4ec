import pytest

from lighten.errors import RecipeError, one_line, shown
from lighten.utils.safe_yaml import MAX_BYTES, MAX_LEVELS, check_plain, read_plain


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"a": [1, 2.5, None, True, "x"], "b": {"c": "é, naïve ☃"}},
        {"a": "${b.c_d}", "b": "$5 {x}", "c": "{from: 1}"},
        {"a": -(2**63) + 1, "b": -0.0, "_hidden": 1, "c": (1, 2)},
    ],
)
def test_plain_values_pass(tree):
    check_plain(tree)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"a": [{"_target_": "x"}]}, "x.yaml: a.0._target_: recipes name what they use and hold no code"),
        ({"a": {"b": "${oc.env:X}"}}, "x.yaml: a.b=${oc.env:X}: resolvers are not allowed"),
        ({"a": "x${ b }"}, "x.yaml: a=x${ b }: resolvers"),
        ({"a": "${${b}}"}, "x.yaml: a=${${b}}: resolvers"),
        ({"a": {1: 2}}, "x.yaml: a: the key 1 is no text"),
        ({None: 2}, "x.yaml: the key None is no text"),
        ({"a": b"x"}, "x.yaml: a: holds bytes, expected text"),
        ({"a": 10**5000}, "x.yaml: a: expected a number that fits 64 bits"),
        ({"a": float("-inf")}, "x.yaml: a=-inf: expected a finite number"),
        ({"a": "x" * 1001}, "x.yaml: a: has 1,001 characters, expected 1,000 at most"),
        ({"a": "\x1b[0m"}, r"x.yaml: a='\x1b[0m': holds a character that cannot be read"),
        ({"a\n": 1}, r"x.yaml: the key a\n='a\n': holds a character that cannot be read"),
    ],
)
def test_what_is_more_is_named(tree, says):
    with pytest.raises(RecipeError) as caught:
        check_plain(tree, "x.yaml: ")
    assert str(caught.value).startswith(says)
    assert str(caught.value).isprintable()


def test_levels():
    tree = "x"
    for _ in range(MAX_LEVELS):
        tree = {"a": tree}
    check_plain(tree)
    with pytest.raises(RecipeError, match="lies 16 levels deep, expected fewer than 16"):
        check_plain({"a": tree})


def test_a_file_may_be_as_large_as_said(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("seed: 1\n#" + "x" * (MAX_BYTES - 9))
    assert read_plain(path) == {"seed": 1}
    path.write_text("seed: 1\n#" + "x" * (MAX_BYTES - 8))
    with pytest.raises(RecipeError, match=r"x\.yaml: is larger than 65,536 bytes"):
        read_plain(path)


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfseed: 1")
    assert read_plain(tmp_path / "x.yaml") == {"seed": 1}


def test_messages_for_a_terminal():
    assert one_line(ValueError("a\nb\r\n\x1b[2Jc")) == r"a b \x1b[2Jc"
    assert one_line(ValueError("x" * 2000)) == "x" * 1000 + "…"
    assert shown("é ☃") == "é ☃"
    assert shown("\ud800\x00") == r"\ud800\x00"
