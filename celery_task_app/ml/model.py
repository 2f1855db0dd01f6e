"""The churn model: a pipeline in a joblib file, checked before it is unpickled. No Celery, no HTTP, no environment.

Importing this module and calling `check_artifact` load no ML library, so a process may do both before it forks.
"""

import hashlib
import io
import json
import logging
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_task_app.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    FeatureMismatch,
    GoldenRowMismatch,
    InvalidPrediction,
    ModelError,
    PredictionError,
    VersionMismatch,
)

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_REASONS = 3  # of each direction
_CHURN = (1, "Attrited Customer")  # what a model's `classes_` may call it; True is equal to 1


@dataclass(frozen=True)
class Artifact:
    """What is known of a model file before it is unpickled."""

    name: str
    version: str
    """The manifest's, or without one the first 12 digits of the file's SHA-256."""
    features: Mapping[str, str]
    """Each feature's type (`integer`, `number` or `category`) in the pipeline's order; empty without a manifest."""
    golden: Sequence[tuple[Mapping[str, object], float]] = ()
    """Customers and the probability that the model gave each when it was made; a manifest may have none."""
    explains: bool = False
    """Whether the manifest says that the pipeline has a method `contributions`."""


def check_artifact(path: Path) -> Artifact:
    """Check that the file is the one that its manifest describes, and made with the libraries installed here.

    Raises:
        ModelError: ArtifactMissing, ArtifactCorrupt or VersionMismatch, with what to do about it.
    """
    return _read_artifact(path)[0]


class ChurnModel:
    """The model at `path`: any object with `predict_proba` over a DataFrame of customers, saved with joblib.

    Unpickling runs whatever code is in the file, so the manifest beside it (the same name, `.json`) is checked first.

    Args:
        path: of the file.
        check: predict the golden rows of the manifest; if not now, `check_golden_rows` does it.

    Raises:
        ModelError: ArtifactMissing, ArtifactCorrupt, VersionMismatch or GoldenRowMismatch, or none of the model's
            classes is churn.
    """

    def __init__(self, path: Path, *, check: bool = True) -> None:
        artifact, content = _read_artifact(path)
        self.name = artifact.name
        self.version = artifact.version
        self._label = f"Model {self.name} {self.version}"
        self._types = artifact.features
        self._pipeline = _unpickle(content, path)
        self._classes = list(getattr(self._pipeline, "classes_", ()))
        churn = [column for column, label in enumerate(self._classes) if label in _CHURN]
        if len(churn) != 1:
            raise ModelError(f"The model at {path} has classes {self._classes}: one must be 1 or 'Attrited Customer'")
        self._churn = churn[0]
        self._features = list(self._types) or list(getattr(self._pipeline, "feature_names_in_", ()))
        self._takes_columns = getattr(self._pipeline, "takes_columns", False)
        self.explains = artifact.explains
        if self.explains and not hasattr(self._pipeline, "contributions"):
            raise ArtifactCorrupt(f"The manifest of {path} says that it explains, but it has no method `contributions`")
        self._path = path
        self._golden = artifact.golden
        if check:
            self.check_golden_rows()
        logger.info("model loaded name=%s version=%s path=%s", self.name, self.version, path)

    def churn_probabilities(self, customers: Sequence[Mapping[str, object]]) -> list[float]:
        """Return each customer's probability of churn.

        Args:
            customers: n mappings of the 19 features of BankChurners.csv, amounts in US dollars; what else they have is
                ignored, and an unknown category is left to the pipeline.

        Returns:
            n probabilities in [0, 1], in the order given.

        Raises:
            FeatureMismatch: a customer lacks a feature that the pipeline was trained on, or its type is another.
            InvalidPrediction: the pipeline failed, or its answer is not n probabilities.
        """
        if not customers:
            return []
        columns = self._columns(customers)
        import numpy as np  # noqa: PLC0415 - see the module's docstring

        try:
            answer = np.asarray(self._pipeline.predict_proba(self._table(columns)), dtype=float)
        except Exception as error:
            raise InvalidPrediction(f"{self._label} failed with {type(error).__name__}") from error
        expected = (len(customers), len(self._classes))
        if answer.shape != expected:
            raise InvalidPrediction(f"{self._label} answered with shape {answer.shape}, not {expected}")
        probabilities: list[float] = answer[:, self._churn].tolist()
        if not all(0 <= probability <= 1 for probability in probabilities):  # which NaN isn't either
            raise InvalidPrediction(f"{self._label} answered with what is no probability")
        return probabilities

    def reasons(self, customers: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        """Return what made each customer's probability, in log-odds; what it has adds up to log(p / (1 - p)).

        Only of a model that `explains`. Each has the `base`, which is every customer's, the three features at most that
        pushed most `up` and `down`, the strongest first, and what all `others` did together. Raises as
        `churn_probabilities` does.
        """
        contributions = self._pipeline.contributions(self._table(self._columns(customers)))
        return [self._reasons(row[:-1], row[-1]) for row in contributions.tolist()]

    def _reasons(self, contributions: list[float], base: float) -> dict[str, Any]:
        ranked = sorted(zip(contributions, self._features, strict=True))
        down = [pushed for pushed in ranked[:_REASONS] if pushed[0] < 0]
        up = [pushed for pushed in ranked[: -_REASONS - 1 : -1] if pushed[0] > 0]
        named = [[{"feature": feature, "log_odds": log_odds} for log_odds, feature in pushed] for pushed in (up, down)]
        others = sum(contributions) - sum(log_odds for log_odds, _ in up + down)
        return {"base": base, "up": named[0], "down": named[1], "others": others}

    def check_golden_rows(self) -> None:
        """Compare what the model predicts here with what it predicted where it was made.

        Raises:
            GoldenRowMismatch: they differ.
        """
        path, golden = self._path, self._golden
        expected = [probability for _, probability in golden]
        try:
            predicted = self.churn_probabilities([customer for customer, _ in golden])
        except PredictionError as error:
            raise GoldenRowMismatch(f"{path} can't predict the golden rows of its manifest ({error})") from error
        for row, (here, there) in enumerate(zip(predicted, expected, strict=True)):
            if not math.isclose(here, there, abs_tol=1e-6):  # what another processor may round otherwise
                raise GoldenRowMismatch(
                    f"{path} predicts {here} for golden row {row}, and its manifest says {there}: the libraries or the "
                    "machine compute otherwise; run 'pip install -r requirements.txt', or train again here"
                )

    def _columns(self, customers: Sequence[Mapping[str, object]]) -> dict[str, Any]:
        """Return each feature's values, in the order and of the types that the pipeline was trained on."""
        columns = {}
        for feature in self._features or customers[0]:
            try:
                values = list(map(itemgetter(feature), customers))
            except KeyError as error:
                raise FeatureMismatch(f"{feature} is missing, and the model was trained on it") from error
            columns[feature] = _column(feature, self._types.get(feature), values)
        return columns

    def _table(self, columns: dict[str, Any]) -> "pd.DataFrame | dict[str, Any]":
        """Return the columns as what the pipeline takes: a DataFrame, which costs 0.2 ms, unless it says otherwise."""
        if self._takes_columns:
            return columns
        import pandas as pd  # noqa: PLC0415 - see the module's docstring

        return pd.DataFrame(columns)


def _column(feature: str, kind: str | None, values: list[Any]) -> object:
    """Return the values as what pandas needs for the right dtype, if they are of the kind that the manifest names."""
    if kind == "category" and not all(issubclass(found, str) for found in set(map(type, values))):
        raise FeatureMismatch(f"{feature} must be text")
    if kind in ("integer", "number"):
        import numpy as np  # noqa: PLC0415 - see the module's docstring

        try:
            return np.frombuffer(array("d", values))  # stricter than numpy, to which "5" is a number and None is NaN
        except (TypeError, OverflowError) as error:
            raise FeatureMismatch(f"{feature} must be a number") from error
    return values


def _read_artifact(path: Path) -> tuple[Artifact, bytes]:
    """Read the file once and check it; what is returned is what was checked."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactMissing(f"No model at {path}: run 'make train DATA=...' or set MODEL_PATH") from error
    except OSError as error:
        raise ArtifactCorrupt(f"{path} can't be read ({error.strerror}): set MODEL_PATH to a file that can") from error
    sha256 = hashlib.sha256(content).hexdigest()

    manifest_path = path.with_suffix(".json")
    try:
        manifest = json.loads(manifest_path.read_bytes())
        features = {feature["name"]: feature["type"] for feature in manifest["features"]}
        golden = [(row["customer"], float(row["probability"])) for row in manifest.get("golden", ())]
        artifact = Artifact(manifest["name"], manifest["version"], features, golden, manifest.get("explains") is True)
        described, libraries = manifest["sha256"], dict(manifest["libraries"])
    except FileNotFoundError:
        logger.warning("model not verified path=%s reason='no manifest beside it'", path)
        return Artifact(path.stem, sha256[:12], {}), content
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactCorrupt(f"Manifest {manifest_path} is damaged ({error!r}): restore it or train again") from error

    if sha256 != described:
        raise ArtifactCorrupt(f"{path} is not the file that {manifest_path} describes: restore both or train again")
    for library in ("scikit-learn", "lightgbm"):  # neither promises to read what another version pickled
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
    # OpenMP reads it when it is first loaded. With more threads the processes of a machine fight for its cores (97
    # predictions a second instead of 318 on two), and a process that forks after OpenMP has started them hangs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import joblib  # noqa: PLC0415 - see the module's docstring

    try:
        model = joblib.load(io.BytesIO(content))
    except Exception as error:
        raise ArtifactCorrupt(f"{path} can't be unpickled ({error!r}): restore it or train again") from error
    if not hasattr(model, "predict_proba"):
        raise ArtifactCorrupt(f"{path} holds no model: {type(model).__name__} has no predict_proba; set MODEL_PATH")
    return model
