"""A rule that no linter has: tests import no private name of ours, and assign to no module or class of ours.

ruff's SLF001 forbids `name._private`. A value that a test must set is an argument of a constructor or function.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import ROOT

OURS = {"api", "app", "benchmarks", "celery_task_app", "models", "test_client", "tests"}
FILES = sorted((ROOT / "tests").rglob("*.py"))


def is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] in OURS


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each name that is imported from our modules, as it is called there and here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_ours(node.module):
            yield from ((name.name, name.asname or name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if is_ours(name.name):
                    yield name.name.rpartition(".")[2], name.asname or name.name.partition(".")[0]


def assigned(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield each object whose attribute is assigned or patched, and each patched path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in {"setattr", "delattr", "patch", "object"}:
                yield node.args[0]
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [getattr(node, "target", None)]
        yield from (target.value for target in targets if isinstance(target, ast.Attribute))


def findings(text: str) -> list[str]:
    tree = ast.parse(text)
    names = list(imported(tree))
    private = [name for name, _ in names if name.startswith("_") and not name.startswith("__")]
    here = {name for _, name in names}
    patched = [
        ast.unparse(target)
        for target in assigned(tree)
        if (isinstance(target, ast.Constant) and is_ours(str(target.value)))
        or ast.unparse(target) in here
        or (isinstance(target, ast.Attribute) and ast.unparse(target).partition(".")[0] in here & OURS - {"app"})
    ]
    return private + patched


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_a_test_uses_public_names_and_patches_nothing_of_ours(path: Path) -> None:
    assert findings(path.read_text()) == []


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("from api.http.auth import _sign", ["_sign"]),
        ("from celery_task_app.consumer import lifecycle\nlifecycle.STOP_WITHIN_S = 1", ["lifecycle"]),
        ("import api.completion\napi.completion.WITHIN_S = 1", ["api.completion"]),
        ("from api import completion\nmonkeypatch.setattr(completion, 'WITHIN_S', 1)", ["completion"]),
        ("monkeypatch.setattr('api.completion.WITHIN_S', 1)", ["api.completion.WITHIN_S"]),
        ("from tempfile import _get_candidate_names\nimport tempfile\npatch.setattr(tempfile, 'tempdir', '/')", []),
        ("from app import app\napp.state.services = 1", []),
    ],
)
def test_the_rule_finds_private_and_patched_names(program: str, found: list[str]) -> None:
    found_here = [name.strip("'") for name in findings(program)]
    assert found_here == found
