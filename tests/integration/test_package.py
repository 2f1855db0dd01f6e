"""`cli.package` and `cli.compare`: a model of the user's own is checked, described and compared before it serves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from celery_task_app.cli.compare import compare
from celery_task_app.cli.compare import main as compare_command
from celery_task_app.cli.package import NotServable, package
from celery_task_app.cli.package import main as package_command
from celery_task_app.ml.model import ChurnModel
from tests.harness.processes import ROOT


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": range(100),  # no feature
            "age": rng.integers(18, 90, 100),
            "balance": rng.normal(1000, 300, 100).round(2),
            "color": rng.choice(["red", "blue", "NA"], 100),
            "is_member": rng.choice([True, False], 100),
        }
    )


@pytest.fixture
def churned(table: pd.DataFrame) -> Any:
    return (table["age"] > 50).astype(int)


@pytest.fixture
def sample(table: pd.DataFrame, tmp_path: Path) -> Path:
    table.to_csv(tmp_path / "sample.csv", index=False)
    return tmp_path / "sample.csv"


@pytest.fixture
def model(table: pd.DataFrame, churned: Any, tmp_path: Path) -> Path:
    columns = make_column_transformer((OneHotEncoder(), ["color"]), remainder="passthrough")
    pipeline = make_pipeline(columns, LogisticRegression(max_iter=5000))
    return saved(pipeline.fit(table[["age", "balance", "color", "is_member"]], churned), tmp_path)


def saved(pipeline: object, folder: Path, name: str = "mine") -> Path:
    joblib.dump(pipeline, folder / f"{name}.joblib")
    return folder / f"{name}.joblib"


def packaged(model: Path, sample: Path, **options: Any) -> dict[str, Any]:
    return package(model, sample, model.parent / "out", name="mine", **options)


def test_a_packaged_model_is_described_and_verified(model: Path, sample: Path, table: pd.DataFrame) -> None:
    manifest = packaged(model, sample, threshold=0.4)
    assert manifest["features"] == [
        {"name": "age", "type": "integer", "minimum": table["age"].min(), "maximum": table["age"].max()},
        {"name": "balance", "type": "number", "minimum": table["balance"].min(), "maximum": table["balance"].max()},
        {"name": "color", "type": "category", "categories": ["NA", "blue", "red"]},
        {"name": "is_member", "type": "integer", "minimum": 0, "maximum": 1},
    ]
    assert {"scikit-learn", "numpy"} <= manifest["libraries"].keys()
    assert "lightgbm" not in manifest["libraries"]
    assert (manifest["version"], manifest["threshold"]) == (manifest["sha256"][:12], 0.4)
    assert len(manifest["golden"]) == 10
    assert json.loads((model.parent / "out" / "mine.json").read_text()) == manifest
    served = ChurnModel(model.parent / "out" / "mine.joblib")
    assert (served.version, served.has_trial) == (manifest["version"], True)


def test_a_category_of_digits_is_text_if_it_is_named(table: pd.DataFrame, churned: Any, tmp_path: Path) -> None:
    table = table.assign(postal_code=["01067", "10115"] * 50)[["age", "postal_code"]]
    table.to_csv(tmp_path / "codes.csv", index=False)
    columns = make_column_transformer((OneHotEncoder(), ["postal_code"]), remainder="passthrough")
    model = saved(make_pipeline(columns, LogisticRegression(max_iter=5000)).fit(table, churned), tmp_path)
    with pytest.raises(NotServable, match="can't predict the sample"):
        packaged(model, tmp_path / "codes.csv")
    manifest = packaged(model, tmp_path / "codes.csv", categories=["postal_code"])
    assert manifest["features"][1] == {"name": "postal_code", "type": "category", "categories": ["01067", "10115"]}
    served = model.parent / "out" / "mine.joblib"
    assert compare(served, served, tmp_path / "codes.csv", None).startswith("100 customers; ")


def test_rows_without_a_value_are_left_out(model: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    table.loc[0, "age"] = None
    table.to_csv(tmp_path / "gaps.csv", index=False)
    assert packaged(model, tmp_path / "gaps.csv")["features"][0]["name"] == "age"


class Undecided:
    """A classifier whose answers depend on the number of its calls."""

    classes_ = (0, 1)
    calls = 0

    def predict_proba(self, customers: pd.DataFrame) -> Any:
        self.calls += 1
        return np.full((len(customers), 2), 0.5 + 0.1 * (self.calls % 2))


class Relative:
    """A classifier whose answers depend on the other rows."""

    classes_ = (0, 1)

    def predict_proba(self, customers: pd.DataFrame) -> Any:
        churn = customers["age"].rank(pct=True).to_numpy()
        return np.column_stack((1 - churn, churn))


class OnlyIntegers:
    """A classifier that takes no floats, and a worker makes a float of each number."""

    classes_ = (0, 1)

    def predict_proba(self, customers: pd.DataFrame) -> Any:
        if customers["age"].dtype != int:
            raise TypeError("age is no integer")
        return np.full((len(customers), 2), 0.5)


class Broken:
    classes_ = (0, 1)

    def predict_proba(self, _: pd.DataFrame) -> Any:
        raise KeyError("shoe size")


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ({}, "has no predict_proba"),
        (Undecided(), "when it is asked again: fix its random state"),
        (Relative(), "when it is asked alone"),
        (OnlyIntegers(), r"with a float for each number .*age is no integer"),
        (Broken(), r"can't predict the sample .*KeyError.*shoe size"),
        (
            LogisticRegression().fit([[1.0], [2.0], [3.0]], [0, 1, 2]),
            r"classes \[.*\]: the service needs a binary classifier, with 1 for churn",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_with_the_reason(
    pipeline: object, reason: str, sample: Path, tmp_path: Path
) -> None:
    model = saved(pipeline, tmp_path)
    with pytest.raises(NotServable, match=reason) as refusal:
        packaged(model, sample)
    assert str(model) in str(refusal.value) or "The model" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_sample_without_a_column_or_rows_is_refused(model: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    table.drop(columns=["age", "color"]).to_csv(tmp_path / "narrow.csv", index=False)
    with pytest.raises(NotServable, match="lacks the columns age, color"):
        packaged(model, tmp_path / "narrow.csv")
    table.assign(**{"shoe size": 40}).to_csv(tmp_path / "names.csv", index=False)
    with pytest.raises(NotServable, match="can have the name of the columns 'shoe size'"):
        packaged(saved(Undecided(), tmp_path, "no_names"), tmp_path / "names.csv")
    table.head(1).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(NotServable, match="has 1 complete rows"):
        packaged(model, tmp_path / "short.csv")
    with pytest.raises(NotServable, match=r"none\.csv can't be read"):
        packaged(model, tmp_path / "none.csv")
    with pytest.raises(NotServable, match="There is no file"):
        packaged(tmp_path / "none.joblib", tmp_path / "none.csv")


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_a_class_of_the_training_program_is_named_with_the_way_out(sample: Path, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import joblib\n"
        "class Mine:\n"
        "    classes_ = (0, 1)\n"
        "    def predict_proba(self, customers): ...\n"
        "joblib.dump(Mine(), 'mine.joblib')\n"
    )
    assert run(str(program), folder=tmp_path).returncode == 0
    with pytest.raises(NotServable, match=r"needs __main__\.Mine.* Move it into a module"):
        packaged(tmp_path / "mine.joblib", sample)


def test_the_command_prints_the_schema_to_paste_and_how_to_serve(
    model: Path, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert package_command([str(model), "--sample", str(sample)]) == 0
    printed = capsys.readouterr().out
    assert "The model does not fit models.py: the model needs age, which `Customer` lacks" in printed
    assert '    color: Literal["NA", "blue", "red"] = Field(examples=["' in printed
    assert "    is_member: int = Field(ge=0, le=1, examples=[" in printed
    assert 'CUSTOMER = {"age": ' in printed
    assert printed.endswith(f"Serve it: MODEL_PATH={model} make run\n")


def test_the_command_says_in_one_line_why_it_refuses(
    model: Path, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, reason in (
        ([str(model), "--sample", "none.csv"], "Not packaged. none.csv can't be read as CSV: "),
        ([str(model.parent), "--sample", str(sample)], "Not packaged. "),  # a folder
        ([str(model), "--sample", str(sample), "--out", f"{sample}/out"], "Not packaged. "),  # below a file
    ):
        assert package_command(words) == 1
        refused = capsys.readouterr()
        assert refused.err.startswith(reason)
        assert refused.err.count("\n") == 1


def test_a_column_of_booleans_with_a_gap_is_a_number(
    model: Path, table: pd.DataFrame, sample: Path, tmp_path: Path
) -> None:
    table["is_member"] = table["is_member"].astype(object)
    table.loc[3, "is_member"] = None
    table.to_csv(sample, index=False)
    manifest = packaged(model, sample)
    assert manifest["features"][-1] == {"name": "is_member", "type": "integer", "minimum": 0, "maximum": 1}


def test_the_compare_command_prints_the_differences_or_the_reason(
    model: Path, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_command([str(model), str(model), str(sample)]) == 0
    assert capsys.readouterr().out.startswith("100 customers; old mine ")
    assert compare_command([str(model), "none.joblib", str(sample)]) == 1
    assert capsys.readouterr().err.startswith("Not compared. No model at none.joblib")


@pytest.mark.parametrize("name", ["model_config", "Field", "int", "class", "\u00b5m", "Gro\u0308\u00dfe", "a b"])
def test_a_column_that_no_field_can_have_is_refused(
    name: str, table: pd.DataFrame, churned: Any, tmp_path: Path
) -> None:
    renamed = table[["balance"]].set_axis([name], axis=1)
    renamed.to_csv(tmp_path / "sample.csv", index=False)
    with pytest.raises(NotServable, match="No field of `Customer` can have the name"):
        packaged(saved(LogisticRegression().fit(renamed, churned), tmp_path), tmp_path / "sample.csv")


def test_categories_with_blanks_at_their_ends_are_refused(model: Path, table: pd.DataFrame, sample: Path) -> None:
    table["color"] = table["color"].replace("red", "red ")
    table.to_csv(sample, index=False)
    with pytest.raises(NotServable, match="color begin or end with a blank"):
        packaged(model, sample)


def test_no_other_file_is_replaced(model: Path, sample: Path, table: pd.DataFrame, churned: Any) -> None:
    packaged(model, sample)
    packaged(model, sample, threshold=0.3)  # a new manifest of the same model
    out = model.parent / "out"
    other = saved(LogisticRegression().fit(table[["balance"]], churned), model.parent, "other")
    with pytest.raises(NotServable, match=r"mine\.joblib is another model: choose another --out or --name"):
        packaged(other, sample)
    (out / "notes.json").write_text('{"mine": "precious"}')
    with pytest.raises(NotServable, match=r"notes\.json is not a manifest"):
        package(other, sample, out, name="notes", version=None, threshold=None)
    with pytest.raises(NotServable, match="has a folder"):
        package(other, sample, out, name="../notes", version=None, threshold=None)
    assert (out / "notes.json").read_text() == '{"mine": "precious"}'


@pytest.mark.parametrize("threshold", ["nan", "7", "-1", "half"])
def test_a_threshold_outside_0_to_1_is_refused(model: Path, sample: Path, threshold: str) -> None:
    for command, words in (
        (package_command, [str(model), "--sample", str(sample)]),
        (compare_command, [str(model), str(model), str(sample)]),
    ):
        with pytest.raises(SystemExit):
            command([*words, "--threshold", threshold])


class Exits:
    """A model whose file exits when it is loaded."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class HasTwoOutputs:
    """A model with the classes of two outputs."""

    classes_ = (np.array([0, 1]), np.array([0, 1]))

    def predict_proba(self, customers: pd.DataFrame) -> Any: ...


@pytest.mark.parametrize(("model", "reason"), [(Exits(), "can't be unpickled"), (HasTwoOutputs(), "one output")])
def test_a_model_that_exits_or_has_two_outputs_is_refused(
    model: object, reason: str, sample: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotServable, match=reason):
        packaged(saved(model, tmp_path), sample)


def test_two_models_are_compared_on_a_file(model: Path, sample: Path, table: pd.DataFrame, churned: Any) -> None:
    other = saved(LogisticRegression().fit(table[["balance"]], churned), model.parent, "other")
    text = compare(model, other, sample, None)
    assert text.startswith("100 customers; old mine ")
    assert "decisions, with the thresholds 0.5 (old) and 0.5 (new)" in text
    old, new = joblib.load(model), joblib.load(other)
    before = old.predict_proba(table)[:, 1] >= 0.5
    after = new.predict_proba(table[["balance"]])[:, 1] >= 0.5
    assert f"churn only in the old    {(before & ~after).sum()}\n" in text
    assert text.count("\n  row ") == 10
    assert "row " not in compare(model, model, sample, 0.3).partition("largest")[2].partition("\n")[2]
