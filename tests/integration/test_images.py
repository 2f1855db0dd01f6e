"""The two images of the Dockerfile: each process can be imported from the files that its stage copies."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.harness.processes import ROOT

SETTINGS, PATH = "from celery_task_app.settings import settings", "settings.model_path"


def copied(stage: str) -> list[tuple[str, str]]:
    """Return the source and the destination of each file or folder that a stage copies."""
    _, _, rest = (ROOT / "Dockerfile").read_text().partition(f" AS {stage}\n")
    lines = re.findall(r"^COPY (.+)$", rest.partition("\nFROM ")[0], re.MULTILINE)
    words = [line.split() for line in lines]
    return [
        (source, target) for *sources, target in words for source in sources if source != f"requirements/{stage}.txt"
    ]


def excluded() -> list[Path]:
    """Return the folders and files that .dockerignore names after `*`, without the `!` lines."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [ROOT / line for line in lines if line and not line.startswith(("#", "*", "!"))]


def build(stage: str, folder: Path) -> None:
    """Copy the files of a stage into a folder, as Docker does."""

    def ignored(parent: str, names: list[str]) -> set[str]:
        return {name for name in names if name == "__pycache__" or Path(parent, name) in excluded()}

    for source, target in copied(stage):
        destination = folder / target / (Path(source).name if target.endswith("/") else "")
        destination.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, destination, ignore=ignored)
        else:
            shutil.copy(ROOT / source, destination)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def run(statement: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", statement], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dockerignore_admits_the_folder_of_each_copied_file() -> None:
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {Path(source).parts[0] for stage in ("api", "worker") for source, _ in copied(stage)}
    assert admitted == sources | {"requirements"}
    assert all(path.exists() for path in excluded())


def test_the_api_image_has_no_worker_code_and_no_training_code(tmp_path: Path) -> None:
    build("api", tmp_path)
    run("import app; app.app.openapi()", tmp_path)
    ml = {name for name in files(tmp_path) if name.startswith("celery_task_app/ml/")}
    assert ml == {f"celery_task_app/ml/{name}" for name in ("__init__.py", "schema.py")}
    assert not [name for name in files(tmp_path) if re.match(r"celery_task_app/(tasks|consumer|cli)", name)]


def test_the_worker_image_has_no_http_code_and_loads_the_model(tmp_path: Path) -> None:
    build("worker", tmp_path)
    consumer = "celery_task_app.consumer"
    run(f"import celery_task_app.tasks, {consumer}.consumer, {consumer}.healthcheck", tmp_path)
    run(f"{SETTINGS}; from celery_task_app.ml.model import ChurnModel; ChurnModel({PATH})", tmp_path)
    assert {name.partition("/")[0] for name in files(tmp_path)} == {"celery_task_app"}
    assert not [name for name in files(tmp_path) if name.startswith("celery_task_app/cli")]
