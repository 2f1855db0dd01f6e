"""The Lua scripts of the result store document their interface at the head of the file."""

import re
from pathlib import Path

import pytest

from tests.harness.processes import ROOT

SCRIPTS = sorted((ROOT / "celery_task_app/store/scripts").glob("*.lua"))


def head(script: Path) -> str:
    """Return the comment lines before the first statement."""
    lines = script.read_text().splitlines()
    count = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:count])


def test_there_are_scripts() -> None:
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_head_of_a_script_documents_its_keys_arguments_and_result(script: Path) -> None:
    documented = head(script)
    assert "KEYS" in documented
    assert "ARGV" in documented
    assert re.search(r"\breturns?\b", documented, re.IGNORECASE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_key_of_a_script_is_documented(script: Path) -> None:
    documented = head(script)
    used = set(re.findall(r"KEYS\[\d+\]", script.read_text().removeprefix(documented)))
    assert used <= set(re.findall(r"KEYS\[\d+\]", documented))
