"""The example customer, rows of customers as the formats of a batch, and the rows that the API returns for them."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from models import Customer

Row = dict[str, Any]

FEATURES: dict[str, Row] = Customer.model_json_schema()["properties"]
"""Feature name to its JSON schema, in the order of `Customer`."""
CUSTOMER: Row = {name: feature["examples"][0] for name, feature in FEATURES.items()}


def as_csv(rows: Sequence[Row]) -> str:
    """Write rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_ndjson(rows: Sequence[Row]) -> str:
    """Write rows as one JSON object a line."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def repeated_csv(customer: Row, count: int) -> str:
    """Write one customer COUNT times as CSV with a header."""
    header, line = as_csv([customer]).splitlines()
    return f"{header}\n" + f"{line}\n" * count


def marked_results(rows: Sequence[Row]) -> list[Row]:
    """Return the results of rows under the marked model: the probability is Total_Trans_Ct / 1000."""
    return [{"row": number, "probability": row["Total_Trans_Ct"] / 1000} for number, row in enumerate(rows)]
