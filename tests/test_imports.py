"""The import rules of the design: one direction, and no ML library in the API process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

ML_LIBRARIES = {"lightgbm", "sklearn", "pandas", "numpy", "scipy", "joblib"}
PACKAGE = "celery_task_app."

ALLOWED = {
    "app.py": {
        "models", "settings", "errors", "headers", "answers", "problems", "bodies", "docs", "submission", "results",
        "waiting", "idempotency", "health", "ml.manifest", "batches", "batch_routes", "intake", "access",
        "heads",
    },
    "celery_task_app/problems.py": {"answers", "errors"},
    "celery_task_app/access.py": {"settings", "problems"},
    "celery_task_app/bodies.py": {"settings", "errors"},
    "celery_task_app/heads.py": set(),
    "celery_task_app/docs.py": set(),
    "celery_task_app/answers.py": set(),
    "celery_task_app/batch_routes.py": {"models", "access", "answers", "errors", "problems", "rows"},
    "celery_task_app/headers.py": {"settings"},
    "models.py": {"problems"},
    "celery_task_app/settings.py": set(),
    "celery_task_app/errors.py": set(),
    "celery_task_app/worker.py": {"settings"},
    "celery_task_app/valkey.py": set(),
    "celery_task_app/results.py": {"settings", "errors", "worker"},
    "celery_task_app/backlog.py": {"errors"},
    "celery_task_app/submission.py": {"settings", "errors", "worker", "results", "backlog"},
    "celery_task_app/waiting.py": {"settings", "errors", "results"},
    "celery_task_app/idempotency.py": {"settings", "errors", "results"},
    "celery_task_app/heartbeat.py": {"errors", "results"},
    "celery_task_app/health.py": {"heartbeat", "results", "submission"},
    "celery_task_app/tasks.py": {
        "settings", "errors", "worker", "results", "submission", "heartbeat", "ml.model",
    },
    "celery_task_app/chunk_task.py": {"errors", "worker", "submission", "tasks", "batches"},
    "celery_task_app/rows.py": {"errors"},
    "celery_task_app/batches.py": {"settings", "errors", "results", "rows"},
    "celery_task_app/intake.py": {"settings", "errors", "worker", "submission", "backlog", "batches", "rows"},
    "celery_task_app/score.py": set(),
    "celery_task_app/launch.py": set(),
    "celery_task_app/ml/model.py": {"errors"},
    "celery_task_app/ml/features.py": {"ml.symmetric"},  # only to train
    "celery_task_app/ml/symmetric.py": set(),
    "celery_task_app/ml/manifest.py": {"errors"},
    "celery_task_app/ml/search.py": set(),
    "celery_task_app/ml/train.py": {"errors", "ml.features", "ml.search", "ml.symmetric"},
    "test_client.py": set(),
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """The service's own modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    own = {name.removeprefix(PACKAGE) for name in names if name.startswith(PACKAGE)}
    return own | ({"models"} & names)


def modules() -> list[str]:
    package = (ROOT / "celery_task_app").rglob("*.py")
    return [str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.py"), *package) if path.name != "__init__.py"]


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_what_the_design_allows(module: str) -> None:
    assert imported(ROOT / module) <= ALLOWED[module]


@pytest.mark.parametrize("module", modules())
def test_only_settings_and_the_launcher_read_the_environment(module: str) -> None:
    readers = {"celery_task_app/settings.py", "celery_task_app/launch.py"}
    text = (ROOT / module).read_text()
    reads = "os.environ" in text.replace('os.environ.setdefault("OMP_NUM_THREADS", "1")', "") or "getenv" in text
    assert not reads or module in readers


def loaded_by(statement: str, tmp_path: Path) -> set[str]:
    """The top-level modules that a fresh process has loaded after a statement, without any environment."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env={"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_the_api_imports_no_ml_library_and_needs_no_environment(tmp_path: Path) -> None:
    assert not loaded_by("import app; app.app.openapi()", tmp_path) & ML_LIBRARIES


def test_the_workers_main_process_imports_no_ml_library(tmp_path: Path) -> None:
    # What it imports is there before it forks, and OpenMP's threads do not survive a fork.
    assert not loaded_by("import celery_task_app.tasks", tmp_path) & ML_LIBRARIES


def test_the_worker_needs_no_web_framework(tmp_path: Path) -> None:
    assert not loaded_by("import celery_task_app.tasks, celery_task_app.health", tmp_path) & {"fastapi", "uvicorn"}
