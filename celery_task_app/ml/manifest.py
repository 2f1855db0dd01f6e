"""The manifest beside a model file, for whoever tells about the model and does not load it. No ML library."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from celery_task_app.errors import ArtifactCorrupt, ArtifactMissing


def read_manifest(model: Path) -> dict[str, Any]:
    """Return what the manifest of the model file says; it is read again when it was changed.

    Raises:
        ArtifactMissing: there is no manifest.
        ArtifactCorrupt: it is no JSON object.
    """
    path = model.with_suffix(".json")
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise ArtifactMissing(f"No manifest at {path}") from error
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactCorrupt(f"Manifest {path} is damaged ({error!r}): restore it or train again") from error


@lru_cache(maxsize=1)
def _read(path: Path, _changed_ns: int) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))
