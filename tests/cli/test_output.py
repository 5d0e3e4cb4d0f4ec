import json
import subprocess
import sys

import pytest

from lighten.cli.output import print_json, stdout_aside

TALKS = """
import os, sys
from lighten.cli.output import print_json, stdout_aside
with stdout_aside(sys.argv[1] == "aside"):
    print("by Python")
    os.system("echo by a program")
    os.write(1, b"by compiled code\\n")
print_json({"a": [1, "é"]})
"""


def run(how):
    return subprocess.run([sys.executable, "-c", TALKS, how], capture_output=True, text=True, check=True)


def test_whatever_talks_json_is_alone_on_standard_output():
    done = run("aside")
    assert json.loads(done.stdout) == {"a": [1, "é"]}
    assert all(f"by {who}" in done.stderr for who in ("Python", "a program", "compiled code"))


def test_where_nobody_asks_nothing_is_put_aside():
    assert "by compiled code" in run("as it is").stdout


def test_numbers_that_json_lacks_are_refused(capsys):
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"a": float("nan")})
    assert capsys.readouterr().out == ""


def test_standard_output_comes_back_after_an_error(capsys):
    with pytest.raises(KeyError), stdout_aside():
        raise KeyError
    print("here")
    assert capsys.readouterr().out == "here\n"


def test_it_holds_where_python_writes_somewhere_else_than_to_the_first_file(capsys):
    with stdout_aside():
        print("aside")
    assert capsys.readouterr() == ("", "aside\n")
