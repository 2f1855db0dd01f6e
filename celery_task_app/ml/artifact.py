"""A model file and its manifest: check, then unpickle. It does not predict; model.py does.

Importing this module and calling `check_artifact` load no ML library, so the worker can check a model before it forks.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_task_app.errors import ArtifactCorrupt, ArtifactMissing, VersionMismatch
from celery_task_app.ml.schema import Feature, parse_features

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_PINNED_LIBRARIES = ("scikit-learn", "lightgbm")  # neither promises to read a pickle of another version


class GoldenRow(NamedTuple):
    """A customer, and the probability in [0, 1] that the model returned after training."""

    customer: Mapping[str, object]
    probability: float


@dataclass(frozen=True)
class Artifact:
    """A checked model file that is not unpickled yet."""

    name: str
    version: str
    """The manifest's version; without a manifest, the first 12 digits of the file's SHA-256."""
    sha256: str
    """Of the file, in hex digits."""
    features: Mapping[str, Feature]
    """By name, in the pipeline's order; empty without a manifest."""
    golden: Sequence[GoldenRow] = ()
    """The golden rows of the manifest, which may have none."""
    explains: bool = False
    """Whether the manifest says that the pipeline has a method `contributions`."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """As it was read; empty without a manifest."""

    @property
    def card(self) -> dict[str, Any]:
        """The manifest without its golden rows, which are customers."""
        ours = {"name": self.name, "version": self.version, "sha256": self.sha256}
        return {"features": [], **{name: value for name, value in self.manifest.items() if name != "golden"}, **ours}


def read_manifest(model_path: Path) -> dict[str, Any]:
    """Return the manifest of a model file: the JSON object in the file of the same name that ends in `.json`.

    The parsed manifest is cached until the file's modification time or size changes. Do not modify the returned object.

    Args:
        model_path: the model file, which need not exist.

    Raises:
        ArtifactMissing: the manifest does not exist.
        ArtifactCorrupt: the manifest cannot be read, or is not a JSON object.
    """
    path = model_path.with_suffix(".json")
    try:
        status = path.stat()
        return _parse_manifest(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError as error:
        raise ArtifactMissing(f"No manifest at {path}") from error
    except (OSError, ValueError, TypeError) as error:
        raise _damaged_manifest(path, error) from error


def check_artifact(path: Path) -> Artifact:
    """Check a model file against its manifest and the installed libraries, without unpickling the file.

    Without a manifest the check logs a warning and accepts the file.

    Raises:
        ArtifactMissing: the model file does not exist.
        ArtifactCorrupt: the model file or the manifest is damaged, or the SHA-256 differs from the manifest's.
        VersionMismatch: the model was made with another version of scikit-learn or LightGBM.
    """
    return _read_and_check(path)[0]


def load_artifact(path: Path) -> tuple[Artifact, Any]:
    """Check a model file as `check_artifact` does, and unpickle the checked bytes.

    Unpickling runs any code that the file contains, so the check comes first and the file is read only once.

    Returns:
        The artifact, and the unpickled object, which has a method `predict_proba`.

    Raises:
        ArtifactMissing: the model file does not exist.
        ArtifactCorrupt: as for `check_artifact`; or the file cannot be unpickled, or contains no model.
        VersionMismatch: the model was made with another version of scikit-learn or LightGBM.
    """
    artifact, content = _read_and_check(path)
    return artifact, _unpickle(content, path)


@lru_cache(maxsize=1)
def _parse_manifest(path: Path, _modified_ns: int, _size_bytes: int) -> dict[str, Any]:
    manifest = json.loads(path.read_bytes())
    if not isinstance(manifest, dict):
        raise TypeError(f"a JSON {type(manifest).__name__}, not an object")
    return manifest


def _damaged_manifest(path: Path, error: Exception) -> ArtifactCorrupt:
    return ArtifactCorrupt(f"Manifest {path} is damaged ({error!r}): restore it or train again")


def _read_and_check(path: Path) -> tuple[Artifact, bytes]:
    """Return the artifact and the bytes that were checked."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactMissing(f"No model at {path}: run 'make train DATA=...' or set MODEL_PATH") from error
    except OSError as error:
        raise ArtifactCorrupt(f"{path} can't be read ({error.strerror}): set MODEL_PATH to a readable file") from error
    sha256 = hashlib.sha256(content).hexdigest()

    manifest_path = path.with_suffix(".json")
    try:
        manifest = read_manifest(path)
        artifact = Artifact(
            name=str(manifest["name"]),
            version=str(manifest["version"]),
            sha256=sha256,
            features=parse_features(manifest["features"]),
            golden=[GoldenRow(row["customer"], float(row["probability"])) for row in manifest.get("golden", ())],
            explains=manifest.get("explains") is True,
            manifest=manifest,
        )
        expected_sha256, libraries = manifest["sha256"], dict(manifest["libraries"])
    except ArtifactMissing:
        logger.warning("model not verified path=%s reason=%s", path, "no manifest beside it")
        return Artifact(name=path.stem, version=sha256[:12], sha256=sha256, features={}), content
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged_manifest(manifest_path, error) from error

    if sha256 != expected_sha256:
        raise ArtifactCorrupt(f"{path} is not the file that {manifest_path} describes: restore both or train again")
    for library in _PINNED_LIBRARIES:
        if library in libraries:
            _check_version(path, library, libraries[library])
    return artifact, content


def _check_version(path: Path, library: str, required: str) -> None:
    try:
        installed = metadata.version(library)
    except metadata.PackageNotFoundError:
        installed = "missing"
    if installed != required:
        raise VersionMismatch(
            f"{path} was made with {library} {required}, which is {installed} here: "
            "run 'pip install -r requirements.txt', or train again"
        )


def _unpickle(content: bytes, path: Path) -> Any:
    # OpenMP reads this variable when it is first loaded. On two cores, processes with one thread each predict 318
    # customers a second; with more threads they compete, and predict 97. A process that forks after OpenMP has started
    # threads hangs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import joblib  # noqa: PLC0415 - see the module's docstring

    try:
        model = joblib.load(io.BytesIO(content))
    except (Exception, SystemExit) as error:  # unpickling runs code of the file, which may exit
        raise ArtifactCorrupt(f"{path} can't be unpickled ({error!r}): {_advice(error)}") from error
    if not hasattr(model, "predict_proba"):
        raise ArtifactCorrupt(f"{path} holds no model: {type(model).__name__} has no predict_proba; set MODEL_PATH")
    return model


def describe_feature(column: "pd.Series[Any]", kind: str) -> dict[str, Any]:
    """Return a feature as a manifest has it: with its categories, or its range.

    Args:
        column: values of the feature; its name is that of the feature.
        kind: `integer`, `number` or `category`.
    """
    if kind == "category":
        return {"name": column.name, "type": kind, "categories": sorted(column.unique())}
    return {"name": column.name, "type": kind, "minimum": column.min().item(), "maximum": column.max().item()}


def write_artifact(path: Path, content: bytes, manifest: Mapping[str, Any]) -> None:
    """Write a model file and its manifest; a folder that does not exist is created.

    The manifest is written last, so its SHA-256 refuses a model of which only one file was replaced.

    Args:
        path: the model file.
        content: of the model file.
        manifest: goes into the file of the same name that ends in `.json`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content)
    _replace(path.with_suffix(".json"), (json.dumps(manifest, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader sees the old content or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)


def _advice(error: BaseException) -> str:
    """Return the way out of an error of unpickling."""
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name} for the worker, as docs/own-model.md shows"
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return "move the class into a module that the worker can import, and save the model again"
    return "restore it or train again"
