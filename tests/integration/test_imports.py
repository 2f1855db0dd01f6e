"""The import rules of the modules that import-linter does not see, and of processes that have just started."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import ROOT

OURS = {"api", "app", "benchmarks", "celery_task_app", "models", "test_client", "tests"}
ML_LIBRARIES = {"catboost", "joblib", "lightgbm", "numpy", "optuna", "pandas", "scipy", "sklearn"}
WEB_FRAMEWORKS = {"fastapi", "starlette", "uvicorn"}
SHIPPED = ROOT / "celery_task_app" / "ml" / "artifacts" / "churn.joblib"
MODULES = [
    *(ROOT / name for name in ("app.py", "models.py", "test_client.py")),
    *(path for package in ("api", "celery_task_app") for path in sorted((ROOT / package).rglob("*.py"))),
]


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports; `from a import b` may be the module `a.b`, so it is both."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(name: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in MODULES if name in imported(path)}


def is_within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# import-linter checks packages only (https://github.com/python-grimp/grimp/issues/300), so these three files are here.
@pytest.mark.parametrize("name", ["models.py", "test_client.py"])
def test_models_and_test_client_import_nothing_of_ours(name: str) -> None:
    assert not {name for name in imported(ROOT / name) if is_within(name, OURS)}


def test_app_imports_no_worker_code_and_no_library_of_the_broker_the_store_or_the_model() -> None:
    worker_code = {f"celery_task_app.{name}" for name in ("cli", "consumer", "ml", "tasks")} | {"test_client", "tests"}
    forbidden = worker_code | ML_LIBRARIES | {"amqp", "billiard", "celery", "kombu", "redis"}
    found = {name for name in imported(ROOT / "app.py") if is_within(name, forbidden)}
    assert {name for name in found if not is_within(name, {"celery_task_app.ml.artifact"})} <= {"celery_task_app.ml"}


def test_only_the_three_entry_points_import_the_settings_of_the_process() -> None:
    entry_points = {"app.py", *(f"celery_task_app/{name}.py" for name in ("worker", "tasks"))}
    assert importers("celery_task_app.settings.settings") == entry_points


def test_only_settings_and_the_launcher_read_the_environment() -> None:
    for_openmp = 'os.environ.setdefault("OMP_NUM_THREADS", "1")'  # a write, before LightGBM is imported
    texts = {str(path.relative_to(ROOT)): path.read_text().replace(for_openmp, "") for path in MODULES}
    readers = {name for name, text in texts.items() if "os.environ" in text or "getenv" in text}
    assert readers <= {"celery_task_app/settings.py", "celery_task_app/cli/launch.py"}


def run(program: str, home: Path) -> Any:
    """Run a program in a new process without environment variables; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env={"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loaded_by(statement: str, home: Path) -> set[str]:
    """Return the top-level modules that a new process has loaded after a statement."""
    modules = "sorted({name.partition('.')[0] for name in sys.modules})"
    return set(run(f"{statement}\nimport json, sys\nprint(json.dumps({modules}))", home))


def test_the_api_loads_no_ml_library_and_needs_no_environment(tmp_path: Path) -> None:
    assert not loaded_by("import app; app.app.openapi()", tmp_path) & ML_LIBRARIES


def test_the_main_process_of_a_worker_loads_no_ml_library(tmp_path: Path) -> None:
    # A pool process inherits the modules of the main process, and the threads of OpenMP do not survive a fork.
    assert not loaded_by("import celery_task_app.tasks", tmp_path) & ML_LIBRARIES


def test_a_worker_and_its_health_check_load_no_web_framework(tmp_path: Path) -> None:
    worker = "import celery_task_app.tasks, celery_task_app.consumer.consumer, celery_task_app.consumer.healthcheck"
    assert not loaded_by(worker, tmp_path) & WEB_FRAMEWORKS


@pytest.mark.parametrize("module", ["celery_task_app.ml.artifact", "celery_task_app.ml.model"])
def test_checking_a_model_loads_no_ml_library(module: str, tmp_path: Path) -> None:
    statement = f"""
from pathlib import Path
import {module}
from celery_task_app.ml.artifact import check_artifact, read_manifest
check_artifact(Path({str(SHIPPED)!r}))
read_manifest(Path({str(SHIPPED)!r}))
"""
    assert not loaded_by(statement, tmp_path) & ML_LIBRARIES


def test_unpickling_a_model_imports_no_training_code(tmp_path: Path) -> None:
    program = f"import joblib, json, sys; joblib.load({str(SHIPPED)!r}); print(json.dumps(sorted(sys.modules)))"
    modules = set(run(program, tmp_path))
    assert {name for name in modules if name.startswith("celery_task_app.ml.")} == {"celery_task_app.ml.features"}
    assert not modules & {"catboost", "optuna"}


def test_a_loaded_model_uses_one_thread(tmp_path: Path) -> None:
    program = f"""
import json, os
from pathlib import Path
from celery_task_app.ml.artifact import load_artifact
load_artifact(Path({str(SHIPPED)!r}))
print(json.dumps(os.environ["OMP_NUM_THREADS"]))
"""
    assert run(program, tmp_path) == "1"


STATE = """
import json, os, threading
from pathlib import Path

def state():
    files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # of os.listdir itself
            pass
    status = Path("/proc/self/status").read_text().splitlines()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "threads": [thread.name for thread in threading.enumerate()] + os.listdir("/proc/self/task"),
        "files and sockets": sorted(files),
        "signal handlers": [line for line in status if line.startswith(("SigCgt", "SigIgn"))],
        "shared memory": [line for line in maps if line.split()[1].endswith("s")],
    }
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("module", ["app", "celery_task_app.tasks", "celery_task_app.consumer.consumer"])
def test_an_import_starts_nothing(module: str, tmp_path: Path) -> None:
    before, after = run(f"{STATE}\nbefore = state()\nimport {module}\nprint(json.dumps([before, state()]))", tmp_path)
    assert after == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("threads", "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"),
        ("files and sockets", "import socket; listener = socket.create_server(('127.0.0.1', 0))"),
        ("signal handlers", "import signal; signal.signal(signal.SIGTERM, print)"),
        ("shared memory", "import mmap; shared = mmap.mmap(-1, 16)"),
    ],
)
def test_the_state_of_a_process_shows_each_kind_of_start(kind: str, statement: str, tmp_path: Path) -> None:
    before, after = run(f"{STATE}\nbefore = state()\n{statement}\nprint(json.dumps([before, state()]))", tmp_path)
    assert before[kind] != after[kind]
