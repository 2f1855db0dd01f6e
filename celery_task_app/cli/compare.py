"""`python -m celery_task_app.cli.compare OLD NEW CSV`: how two models differ on the customers of a file.

It loads both model files, which runs code of the files: compare only files that you trust.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery_task_app.cli.package import probability, read_sample
from celery_task_app.errors import ArtifactMissing, ChurnServiceError
from celery_task_app.ml.artifact import read_manifest
from celery_task_app.ml.model import ChurnModel

QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
LARGEST = 10
DEFAULT_THRESHOLD = 0.5


def manifest_of(path: Path) -> dict[str, Any]:
    """Return the manifest of a model; an empty one if there is none."""
    try:
        return read_manifest(path)
    except ArtifactMissing:
        return {}


def compare(old_path: Path, new_path: Path, customers_path: Path, threshold: float | None) -> str:
    """Return the differences between the probabilities of two models, as a text.

    Args:
        old_path: the model that serves.
        new_path: the model that may replace it.
        customers_path: a CSV file with the features of customers.
        threshold: of both models; None for that of each model's manifest.

    Raises:
        ChurnServiceError: a model or the file cannot be used.
    """
    import numpy as np  # noqa: PLC0415 - `--help` needs none

    old, new = ChurnModel(old_path), ChurnModel(new_path)
    manifests = [manifest_of(path) for path in (old_path, new_path)]
    described = [feature for manifest in manifests for feature in manifest.get("features", ())]
    categories = {feature["name"] for feature in described if feature["type"] == "category"}
    table = read_sample(customers_path, list(dict.fromkeys([*old.features, *new.features])), sorted(categories))
    columns = {str(name): table[name].tolist() for name in table}
    before: np.ndarray = np.array(old.column_probabilities(columns))
    after: np.ndarray = np.array(new.column_probabilities(columns))
    change = after - before
    thresholds = [
        float(manifest.get("threshold") or DEFAULT_THRESHOLD) if threshold is None else threshold
        for manifest in manifests
    ]
    was, is_now = before >= thresholds[0], after >= thresholds[1]
    lines = [
        f"{len(table)} customers; old {old.name} {old.version}, new {new.name} {new.version}",
        f"mean probability: old {before.mean():.4f}, new {after.mean():.4f}",
        "",
        "change of the probability (new - old)",
        *(f"  {quantile:3d} %  {np.percentile(change, quantile):+.4f}" for quantile in QUANTILES),
        "",
        f"decisions, with the thresholds {thresholds[0]:g} (old) and {thresholds[1]:g} (new)",
        f"  churn in both            {int((was & is_now).sum())}",
        f"  churn only in the old    {int((was & ~is_now).sum())}",
        f"  churn only in the new    {int((~was & is_now).sum())}",
        f"  churn in none            {int((~was & ~is_now).sum())}",
        "",
        "largest changes (row of the file's complete rows, counted from 0)",
        *(
            f"  row {row:6d}  {before[row]:.4f} -> {after[row]:.4f}"
            for row in np.argsort(-np.abs(change), kind="stable")[:LARGEST]
            if change[row]
        ),
    ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Compare the models of the command line, or of these words; return the exit code."""
    parser = argparse.ArgumentParser(description="Print how two models differ on the customers of a file.")
    parser.add_argument("old", type=Path, help="the joblib file that serves; it runs its code")
    parser.add_argument("new", type=Path, help="the joblib file that may replace it; it runs its code")
    parser.add_argument("customers", type=Path, help="CSV file with the features of customers")
    parser.add_argument("--threshold", type=probability, help="of both models (default: of each manifest, else 0.5)")
    arguments = parser.parse_args(words)
    try:
        print(compare(arguments.old, arguments.new, arguments.customers, arguments.threshold))
    except ChurnServiceError as error:
        reason = f"{error}: {error.__cause__}" if error.__cause__ else f"{error}"
        print(f"Not compared. {reason}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
