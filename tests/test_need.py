"""A test that lacks something says how to get it, and is never passed over in CI."""

import pytest
from _pytest.outcomes import Failed, Skipped
from need import need

GIVEN = ("a browser", "apt-get install chromium")


@pytest.mark.parametrize("environment", [None, "1"])
def test_what_is_there_stops_nothing(environment, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    if environment:
        monkeypatch.setenv("CI", environment)
    need("/usr/bin/chromium", *GIVEN)


def test_what_is_missing_skips_the_test_with_the_command(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(Skipped, match="needs a browser: apt-get install chromium"):
        need(None, *GIVEN)


def test_in_ci_it_fails_the_test(monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Failed, match="needs a browser: apt-get install chromium"):
        need(None, *GIVEN)
