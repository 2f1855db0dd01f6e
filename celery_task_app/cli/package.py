"""`python -m celery_task_app.cli.package MODEL --sample CSV`: check a model of your own, and write its manifest.

It loads the model file, which runs code of the file: package only files that you trust.
"""

import argparse
import hashlib
import json
import keyword
import logging
import shlex
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_task_app.errors import ArtifactCorrupt, ArtifactMissing, ChurnServiceError, ModelError
from celery_task_app.ml.artifact import describe_feature, read_manifest, write_artifact
from celery_task_app.ml.model import ChurnModel
from celery_task_app.ml.schema import CustomerSchema, parse_features, parse_schema, schema_differences

if TYPE_CHECKING:
    import pandas as pd

GOLDEN_ROWS = 10
TOLERANCE = 1e-6
USED_NAMES = {"model_config", "int", "float", "Field", "Literal", "ConfigDict", "BaseModel"}  # by the printed class
REPEATED_ROWS = 200  # predicted twice, and one by one
READ_SCHEMA = (
    "import json, models; from api.customer_schema import describe_customer; "
    "print(json.dumps(describe_customer(models.Customer)))"
)


class NotServable(ModelError):
    """The model cannot be served, with the reason and what to do."""


def package(  # noqa: PLR0913 - the options of the command
    model_path: Path,
    sample_path: Path,
    out: Path,
    *,
    name: str,
    version: str | None = None,
    threshold: float | None = None,
    categories: Sequence[str] = (),
) -> dict[str, Any]:
    """Check a model with a sample, and write the model file and its manifest side by side.

    Args:
        model_path: a joblib file with a fitted binary classifier.
        sample_path: a CSV file with the features of customers, with a header; other columns are ignored.
        out: the folder for `NAME.joblib` and `NAME.json`.
        name: of the model.
        version: None for the first 12 hex digits of the file's SHA-256.
        threshold: from this probability on a customer counts as churning; None if there is none.
        categories: columns of the sample whose values look like numbers, and are categories.

    Returns:
        The manifest.

    Raises:
        ChurnServiceError: the model cannot be served, or the sample cannot be used; nothing is written.
    """
    if Path(name).name != name:
        raise NotServable(f"The name {name} has a folder: use --out for the folder")
    model, libraries = load_model(model_path)
    content = model_path.read_bytes()
    sample = read_sample(sample_path, model.features, categories)
    customers: list[dict[str, Any]] = sample.to_dict("records")  # type: ignore[assignment]
    probabilities = predict_twice(model, customers)
    sha256 = hashlib.sha256(content).hexdigest()
    manifest: dict[str, Any] = {
        "name": name,
        "version": version or sha256[:12],
        "created": datetime.now(UTC).date().isoformat(),
        "sha256": sha256,
        "libraries": libraries,
        "features": [describe_feature(sample[feature], kind_of(sample[feature])) for feature in sample],
        "explains": model.can_explain,
        "golden": [
            {"customer": customers[row], "probability": probabilities[row]} for row in chosen_rows(probabilities)
        ],
    }
    if threshold is not None:
        manifest["threshold"] = threshold
    load_as_a_worker(content, manifest)
    packaged = out / f"{name}.joblib"
    refuse_to_overwrite(packaged, content)
    write_artifact(packaged, content, manifest)
    return manifest


def refuse_to_overwrite(path: Path, content: bytes) -> None:
    """Allow a manifest to be written again, but no other model or file to be replaced.

    Raises:
        NotServable: another model has the name, or the JSON file beside it is no manifest.
    """
    advice = "choose another --out or --name; a file that a worker uses must stay"
    if path.exists() and path.read_bytes() != content:
        raise NotServable(f"{path} is another model: {advice}")
    try:
        is_manifest = "sha256" in read_manifest(path)
    except ArtifactMissing:
        return
    except ArtifactCorrupt:
        is_manifest = False
    if not is_manifest:
        raise NotServable(f"{path.with_suffix('.json')} is not a manifest: {advice}")


def load_as_a_worker(content: bytes, manifest: Mapping[str, Any]) -> None:
    """Load the model with its manifest, which makes a float of each number.

    Raises:
        NotServable: a worker would refuse it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{manifest['name']}.joblib"
        write_artifact(path, content, manifest)
        try:
            ChurnModel(path)
        except ModelError as error:
            raise NotServable(
                f"The model predicts the sample, but not as a worker lets it, with a float for each number "
                f"({str(error).replace(str(path), path.name)}). Fit it on floats. If a number is a category, "
                "fit it on text, and name the column with --category"
            ) from error


def load_model(path: Path) -> tuple[ChurnModel, dict[str, str]]:
    """Return the model, and the versions of the libraries that unpickling imports from, by name.

    Raises:
        NotServable: it is not a binary classifier, or a class of it is in `__main__`, so no other program can load it.
        ModelError: as for ChurnModel.
    """
    used: set[str] = set()

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            used.add(".".join(map(str, arguments)))

    sys.addaudithook(record)
    with tempfile.TemporaryDirectory() as folder:  # a manifest beside the model may describe another one
        copy = Path(folder) / path.name
        try:
            shutil.copyfile(path, copy)
            model = ChurnModel(copy, check=False)
        except FileNotFoundError as error:
            raise NotServable(f"There is no file {path}") from error
        except ModelError as error:
            if mine := sorted(name for name in used if name.startswith("__main__.")):
                raise NotServable(
                    f"{path} needs {', '.join(mine)}, which only the program that saved it has. Move it into a module "
                    "that the worker can import (for example celery_task_app/ml/my_model.py), and save the model again"
                ) from error
            raise NotServable(str(error).replace(str(copy), str(path))) from error
    if len(model.classes) != 2:  # noqa: PLR2004 - binary
        raise NotServable(
            f"{path} has the classes {model.classes}: the service needs a binary classifier, with 1 for churn. For "
            "several classes train one model that tells one of them from all others"
        )
    packages = metadata.packages_distributions()
    names = {package for name in used for package in packages.get(name.partition(".")[0], ())}
    return model, {name: metadata.version(name) for name in sorted(names)}


def read_sample(path: Path, features: Sequence[str], categories: Sequence[str]) -> "pd.DataFrame":
    """Return the complete rows of a CSV file, with the features of the model as columns, in its order.

    Args:
        path: the file.
        features: the columns that the model was fitted on; if it did not record them, all columns of the file.
        categories: columns that are text, although their values look like numbers.

    Raises:
        NotServable: a column is missing, no field of `Customer` can have its name, or too few rows are complete.
    """
    import pandas as pd  # noqa: PLC0415 - it takes 0.5 s, and `--help` needs none

    try:
        # A category may be called NA or None.
        table = pd.read_csv(
            path, dtype=dict.fromkeys(categories, str), keep_default_na=False, na_values=[""], encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:
        raise NotServable(f"{path} can't be read as CSV: {error}") from error
    if missing := [name for name in [*features, *categories] if name not in table]:
        raise NotServable(f"{path} lacks the columns {', '.join(missing)}, on which the model was fitted")
    if not features:
        print("The model did not record its columns, so it gets those of the sample, in their order.")
    table = table[list(features or table)]
    if unfit := [str(name) for name in table if not is_field_name(str(name))]:
        raise NotServable(
            f"No field of `Customer` can have the name of the columns {', '.join(map(repr, unfit))}: rename them to "
            "letters, digits and _ before you fit the model"
        )
    complete = table.dropna().infer_objects()  # a column of booleans with a gap was a column of objects
    if len(complete) < 2:  # noqa: PLR2004 - one row has no range
        raise NotServable(f"{path} has {len(complete)} complete rows: give at least 2; some hundred are better")
    if len(complete) < len(table):
        print(f"{len(table) - len(complete)} of {len(table)} rows lack a value, and are left out.")
    kinds = {name: int if complete[name].dtype == bool else str for name in complete}
    texts = [name for name, kind in kinds.items() if kind is str and not pd.api.types.is_numeric_dtype(complete[name])]
    complete = complete.astype({name: kind for name, kind in kinds.items() if kind is int or name in texts})
    if blanks := [str(name) for name in texts if any(value != value.strip() for value in complete[name].unique())]:
        raise NotServable(
            f"Categories of {', '.join(blanks)} begin or end with a blank, which CSV batches lose: remove the blanks "
            "before you fit the model"
        )
    return complete


def is_field_name(name: str) -> bool:
    """Return whether a field of the printed class can have the name; Python changes identifiers to the form NFKC."""
    is_usable = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
    return is_usable and name not in USED_NAMES and unicodedata.normalize("NFKC", name) == name


def predict_twice(model: ChurnModel, customers: Sequence[dict[str, Any]]) -> list[float]:
    """Return the probability of each customer.

    Raises:
        NotServable: the model fails, or predicts a customer differently when it is asked again, or asked for one alone.
    """
    try:
        probabilities = model.churn_probabilities(customers)
        some = customers[:REPEATED_ROWS]
        again = model.churn_probabilities(some)
        alone = [model.churn_probabilities([customer])[0] for customer in some]
    except ChurnServiceError as error:
        reason = f"{error}: {error.__cause__}" if error.__cause__ else f"{error}"
        raise NotServable(f"The model can't predict the sample ({reason})") from error
    for which, others in (("again", again), ("alone", alone)):
        for row, other in enumerate(others):
            if abs(probabilities[row] - other) > TOLERANCE:
                raise NotServable(
                    f"The model predicts row {row} of the sample as {probabilities[row]}, and {other} when it is asked "
                    f"{which}: fix its random state; a prediction may not depend on the other rows"
                )
    return probabilities


def kind_of(column: "pd.Series[Any]") -> str:
    """Return the type of a feature as the manifest has it: `integer`, `number` or `category`."""
    return {"i": "integer", "u": "integer", "f": "number"}.get(column.dtype.kind, "category")


def chosen_rows(probabilities: Sequence[float]) -> list[int]:
    """Return the numbers of the golden rows, from the lowest probability to the highest."""
    ranked = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    count = min(GOLDEN_ROWS, len(ranked))
    return [ranked[round(number * (len(ranked) - 1) / max(count - 1, 1))] for number in range(count)]


def current_schema() -> CustomerSchema | str:
    """Return the features of `Customer` in models.py of this folder, or the reason why there are none.

    A process of its own imports models.py.
    """
    if not Path("models.py").exists():
        return "no models.py here"
    found = subprocess.run([sys.executable, "-c", READ_SCHEMA], capture_output=True, text=True, check=False)  # noqa: S603
    if found.returncode:
        return f"models.py can't be imported ({found.stderr.strip().splitlines()[-1]})"
    return parse_schema(json.loads(found.stdout))


def customer_class(features: Sequence[Mapping[str, Any]], example: Mapping[str, object]) -> str:
    """Return the `Customer` class for models.py, with the ranges of the sample, and an example."""
    lines = [
        "class Customer(BaseModel):",
        '    """The features that the model needs."""',
        "",
        "    model_config = ConfigDict(strict=True, json_schema_extra=_add_example)",
        "",
    ]
    for feature in features:
        name, kind = feature["name"], feature["type"]
        limits = "" if kind == "category" else f"ge={feature['minimum']}, le={feature['maximum']}, "
        finite = "allow_inf_nan=False, " if kind == "number" else ""
        if kind == "category":
            annotation = f"Literal[{', '.join(map(quoted, feature['categories']))}]"
        else:
            annotation = "int" if kind == "integer" else "float"
        lines.append(f"    {name}: {annotation} = Field({limits}{finite}examples=[{quoted(example[name])}])")
    return "\n".join(lines)


def quoted(value: object) -> str:
    """Return a text or a number as Python source, with double quotes."""
    return json.dumps(value, ensure_ascii=False)


def probability(text: str) -> float:
    """Return the number of an option.

    Raises:
        ArgumentTypeError: it is not in [0, 1].
    """
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def main(words: Sequence[str] | None = None) -> int:
    """Package the model of the command line, or of these words; return the exit code."""
    parser = argparse.ArgumentParser(description="Check a model of your own with a sample, and write its manifest.")
    parser.add_argument("model", type=Path, help="a joblib file with a fitted binary classifier; it runs its code")
    parser.add_argument(
        "--sample", type=Path, required=True, help="CSV file with the features of some hundred customers"
    )
    parser.add_argument("--name", help="of the model (default: the file's name without its ending)")
    parser.add_argument("--version", help="of the model (default: the first digits of the file's SHA-256)")
    parser.add_argument("--threshold", type=probability, help="from this probability on a customer counts as churning")
    parser.add_argument(
        "--category",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column whose values look like numbers and are categories, such as a postal code; it may be repeated",
    )
    parser.add_argument("--out", type=Path, help="the folder for the two files (default: the folder of the model)")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.ERROR)  # the copy without a manifest is not verified, and need not be
    out = arguments.out or arguments.model.parent
    try:
        manifest = package(
            arguments.model,
            arguments.sample,
            out,
            name=arguments.name or arguments.model.stem,
            version=arguments.version,
            threshold=arguments.threshold,
            categories=arguments.category,
        )
    except (ChurnServiceError, OSError) as error:  # OSError: the model is a folder, or `--out` cannot be written
        print(f"Not packaged. {error}.", file=sys.stderr)
        return 1
    path = out / f"{manifest['name']}.joblib"
    print(f"Wrote {path} and {path.with_suffix('.json')}: model {manifest['name']}, version {manifest['version']}.")
    schema = current_schema()
    features = parse_features(manifest["features"])
    differences = [schema] if isinstance(schema, str) else schema_differences(features, schema)
    if differences:
        # The manifest has the categories of the sample. The model may know more.
        reasons = "; ".join(differences).replace("the model does not know", "the sample does not have")
        print(f"The model does not fit models.py: {reasons}.")
        example = manifest["golden"][0]["customer"]
        print(f"\nPaste into models.py, and adapt the ranges:\n\n{customer_class(manifest['features'], example)}")
        print(f"\nPaste into test_client.py:\n\nCUSTOMER = {quoted(example)}\n")
    print(f"Serve it: MODEL_PATH={shlex.quote(str(path))} make run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
