"""A file on its way through the service: batch after batch is sent, awaited, and written with its results."""

import contextlib
import csv
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

from celery_task_app.cli.score import ScoreError
from celery_task_app.cli.score.service import Accepted, ChurnService, TooLarge
from celery_task_app.cli.score.table import OUTPUT_COLUMNS, Table, as_text

MAX_ROWS = 200_000  # of a batch; the service's default
MAX_BYTES = 60 * 2**20  # of a batch; the service's default is 64 MiB

Result = tuple[str, str]
"""The probability of a row and its error, one of them empty."""


@dataclass
class Run:
    """The scoring of one file.

    Attributes:
        service: scores the rows.
        table: the rows.
        resumed: batches of an earlier run of this file, in order: the id, and the number of rows; None if it was not
            given.
        row_count: of the table; known once it has been read.
        batches: of this run, in order: the id, None if each row was refused; and the number of rows.
        max_rows: of a batch; halved when the service refuses.
        scored: rows that have a probability.
        refused: rows that the service refused or could not predict.
        versions: by version of the model, the rows that it computed.
    """

    service: ChurnService
    table: Table
    resumed: list[tuple[str, int | None]]
    row_count: int = 0
    batches: list[tuple[str | None, int]] = field(default_factory=list)
    max_rows: int = MAX_ROWS
    scored: int = 0
    refused: int = 0
    versions: Counter[str] = field(default_factory=Counter)

    def write(self, output: TextIO, threshold: float | None, *, is_raw: bool) -> None:
        """Score every row, and write it with its result. Nothing is written before the first batch has ended.

        Args:
            output: gets CSV in the dialect of the file, and line ends of RFC 4180.
            threshold: the probability from which on `churn` is yes; without it, there is no such column.
            is_raw: copy cells that a spreadsheet would run.

        Raises:
            ScoreError: not every row has a result or a reason.
        """
        self.row_count, has_decimal_commas = self.table.count()
        if not self.row_count:
            raise ScoreError("The file has a header and no row.")
        dialect, header = self.table.dialect, self.table.header
        columns = [name for name in OUTPUT_COLUMNS if name != "churn" or threshold is not None]
        kept = self.table.kept_columns(columns)
        copied = str if is_raw else as_text
        writer = csv.writer(output, delimiter=dialect.delimiter)
        with contextlib.closing(self.table.rows()) as rows:
            for number, results in enumerate(self._batches()):
                if number == 0:
                    output.write("\ufeff" if dialect.has_byte_order_mark else "")
                    output.write(f"sep={dialect.delimiter}\r\n" if dialect.has_separator_line else "")
                    writer.writerow([*(copied(header[place]) for place in kept), *columns])
                for (probability, error), row in zip(results, rows, strict=False):  # the next batch has the next rows
                    decided = [] if threshold is None else [decision(probability, threshold)]
                    shown = probability.replace(".", ",") if has_decimal_commas else probability
                    writer.writerow([*(copied(row[place]) for place in kept), shown, *decided, as_text(error)])
                    self.scored += bool(probability)
                    self.refused += not probability

    def resumable(self) -> list[tuple[str, int]]:
        """Return the batches that another run can resume: those before the first that has no id."""
        known = itertools.takewhile(lambda batch: batch[0] is not None, self.batches)
        return [(batch_id, rows) for batch_id, rows in known if batch_id is not None]

    def _batches(self) -> Iterator[list[Result]]:
        """Yield the results of all rows, batch by batch."""
        held, resumed = list[bytes](), iter(self.resumed)
        with (
            contextlib.closing(self.table.csv_rows()) as rows,
            tqdm(total=self.row_count, unit=" rows", disable=None) as bar,
        ):
            while held := [*held, *fill_batch(rows, held)]:
                batch, count = self._resume(*earlier, held) if (earlier := next(resumed, None)) else self._post(held)
                yield self._results(batch, held[:count], bar)
                held = held[count:]

    def _post(self, rows: list[bytes]) -> tuple[Accepted, int]:
        """Send the first of these rows as a batch; return it, and how many rows were sent."""
        while True:
            count = min(len(rows), self.max_rows)
            try:
                return self.service.post(self.table.csv_header(), rows[:count]), count
            except TooLarge:
                if count == 1:
                    raise
                self.max_rows = count // 2

    def _resume(self, batch_id: str, given: int | None, rows: list[bytes]) -> tuple[Accepted, int]:
        """Return a batch that was made from the first of these rows, and how many rows that were."""
        count = min(given or self.max_rows, len(rows))
        total = self.service.progress(batch_id).total
        if total > count or count < (given or 0):
            raise _another_file(batch_id)
        return Accepted(batch_id, total, count - total), count

    def _results(self, batch: Accepted, rows: list[bytes], bar: "tqdm[None]") -> list[Result]:
        """Wait until a batch is done; return the result of each of its rows."""
        results: dict[int, Result] = {}
        start = bar.n
        self.batches.append((batch.batch_id, len(rows)))
        if batch.batch_id is not None:
            for progress in self.service.wait(batch.batch_id):
                bar.update(start + batch.refused + progress.done - bar.n)
            self.versions += progress.versions
            results = self.service.results(batch.batch_id, batch.total)
            if max(results, default=0) >= len(rows):
                raise _another_file(batch.batch_id)
        missing = [row for row in range(len(rows)) if row not in results and row not in batch.reasons]
        reasons = batch.reasons | dict(self.service.reasons(self.table.csv_header(), rows, missing))
        bar.update(start + len(rows) - bar.n)
        return [results[row] if row in results else ("", reasons[row]) for row in range(len(rows))]


def fill_batch(rows: Iterator[bytes], held: list[bytes]) -> Iterator[bytes]:
    """Yield rows until a batch that has some rows already is full."""
    count, size = len(held), sum(map(len, held))
    while count < MAX_ROWS and size < MAX_BYTES and (row := next(rows, None)) is not None:
        count, size = count + 1, size + len(row)
        yield row


def decision(probability: str, threshold: float) -> str:
    """Return whether a customer counts as churning; nothing without a probability."""
    return ("yes" if float(probability) >= threshold else "no") if probability else ""


def _another_file(batch_id: str) -> ScoreError:
    return ScoreError(f"Batch {batch_id} has other rows: it was made from another file.")
