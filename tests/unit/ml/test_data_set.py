from pathlib import Path

import pandas as pd
import pytest

from celery_task_app.errors import DataSetError
from celery_task_app.ml.data_set import FEATURES, TARGET, read_data_set
from tests.conftest import MANIFEST


def test_the_columns_are_the_features_of_the_shipped_model() -> None:
    assert list(FEATURES.items()) == [(feature["name"], feature["type"]) for feature in MANIFEST["features"]]


def test_a_missing_column_is_named(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table.drop(columns=["Credit_Limit", TARGET]).to_csv(path, index=False)

    with pytest.raises(DataSetError, match=r"(?=.*Attrition_Flag)(?=.*Credit_Limit).*kaggle"):
        read_data_set(path)


def test_an_unknown_target_value_is_named(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table.replace({TARGET: "Existing Customer"}, "Maybe").to_csv(path, index=False)

    with pytest.raises(DataSetError, match=r"Attrition_Flag.*Maybe.*kaggle"):
        read_data_set(path)


def test_text_in_a_numeric_column_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table.astype({"Customer_Age": str}).replace({"Customer_Age": {"45": "old"}}).to_csv(path, index=False)

    with pytest.raises(DataSetError, match="old"):
        read_data_set(path)


@pytest.mark.parametrize("feature", ["Gender", "Credit_Limit"])
def test_an_empty_cell_is_refused(table: pd.DataFrame, tmp_path: Path, feature: str) -> None:
    path = tmp_path / "data.csv"
    table.assign(**{feature: table[feature].where(table.index > 7)}).to_csv(path)

    with pytest.raises(DataSetError, match=f"empty cells in {feature}"):
        read_data_set(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\xff\xfe" * 100,
        b'{"not": "a CSV"}',
        b"a,b\n1,2\n1,2,3,4\n",
        ",".join([*FEATURES, TARGET]).encode(),
    ],
    ids=["empty", "binary", "JSON", "ragged", "no rows"],
)
def test_another_file_is_refused_with_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)

    with pytest.raises(DataSetError, match=r"^[^\n]*data\.csv can't be used: [^\n]*kaggle[^\n]*$"):
        read_data_set(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="directory"):
        read_data_set(tmp_path)
