"""The training data, BankChurners.csv: its columns, and the reader that checks them. It trains nothing."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from celery_task_app.errors import DataSetError

SOURCE = "https://www.kaggle.com/datasets/sakshigoyal7/credit-card-customers"
TARGET = "Attrition_Flag"
CLASSES = ("Existing Customer", "Attrited Customer")  # class 0 and class 1
# Without the id CLIENTNUM, and without the two Naive_Bayes_… columns, which were computed from the target.
FEATURES = {
    "Customer_Age": "integer",
    "Gender": "category",
    "Dependent_count": "integer",
    "Education_Level": "category",
    "Marital_Status": "category",
    "Income_Category": "category",
    "Card_Category": "category",
    "Months_on_book": "integer",
    "Total_Relationship_Count": "integer",
    "Months_Inactive_12_mon": "integer",
    "Contacts_Count_12_mon": "integer",
    "Credit_Limit": "number",
    "Total_Revolving_Bal": "integer",
    "Avg_Open_To_Buy": "number",
    "Total_Amt_Chng_Q4_Q1": "number",
    "Total_Trans_Amt": "integer",
    "Total_Trans_Ct": "integer",
    "Total_Ct_Chng_Q4_Q1": "number",
    "Avg_Utilization_Ratio": "number",
}
"""Feature name to type; the order is the pipeline's."""

_DTYPES = {"integer": "int64", "number": "float64", "category": "str"}


class DataSet(NamedTuple):
    """The customers of a file, and their class."""

    customers: pd.DataFrame
    """n rows of `FEATURES`."""
    churned: "pd.Series[int]"
    """n times 1 (left) or 0 (stayed)."""
    sha256: str
    """The file's SHA-256."""


def read_data_set(path: Path) -> DataSet:
    """Read and check the data set.

    Args:
        path: BankChurners.csv, or a CSV file with the columns `FEATURES` and `TARGET`.

    Raises:
        DataSetError: the file cannot be read, lacks a column or a value, or contains a value of another type.
    """
    try:
        content = path.read_bytes()
        dtypes = {TARGET: "str"} | {feature: _DTYPES[kind] for feature, kind in FEATURES.items()}
        table = pd.read_csv(io.BytesIO(content), usecols=list(dtypes), dtype=dtypes)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise _unusable(path, reason) from error
    if table.isna().any(axis=None):
        raise _unusable(path, f"empty cells in {', '.join(table.columns[table.isna().any()])}")
    if set(table[TARGET]) != set(CLASSES):
        raise _unusable(path, f"{TARGET} must be {' or '.join(CLASSES)}, not {sorted(set(table[TARGET]))[:5]}")
    churned = (table[TARGET] == CLASSES[1]).astype(int)
    return DataSet(table[list(FEATURES)], churned, hashlib.sha256(content).hexdigest())


def _unusable(path: Path, reason: str | None) -> DataSetError:
    return DataSetError(f"{path} can't be used: {reason}. Download BankChurners.csv from {SOURCE}")
