"""The command: its arguments, its input and output, and its exit code."""

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit
from uuid import UUID

import requests

from celery_task_app.cli.score import ScoreError
from celery_task_app.cli.score.scoring import Run
from celery_task_app.cli.score.service import BearerKey, ChurnService
from celery_task_app.cli.score.table import read_table

INTERRUPTED = 130  # exit code, as of a shell
DESCRIPTION = "Add each customer's probability of churn to a CSV file."
EPILOG = """
The output is UTF-8 with the input's delimiter, and each row ends with \\r\\n (RFC 4180). It has the rows and columns
of the input without blank rows, then churn_probability, churn (with --threshold) and churn_error, the reason of a
missing probability. Input columns of these names are replaced. Only the features of the customers are sent.

Ctrl-C stops this command and not the batch: the command prints how to resume, and how to cancel. A file with more
than 200,000 rows is sent as several batches, one after the other.

Exit code: 0, 1 if no row was scored (standard error has the reason), 2 for wrong arguments, 130 after Ctrl-C.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Score the file of the command line, or of these words; return the exit code."""
    arguments = parser().parse_args(words)
    run: Run | None = None
    try:
        with requests.Session() as session, readable(arguments.file) as path:
            if arguments.key_file:
                session.auth = BearerKey(read_key(arguments.key_file))
            service = ChurnService(session, arguments.url, arguments.retry_for)
            run = Run(service, read_table(path, *service.features()), arguments.resume)
            with opened_output(arguments.out) as output:
                run.write(output, arguments.threshold, is_raw=arguments.raw)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped.{hint(run)}\n")
        return INTERRUPTED
    except ScoreError as error:
        sys.stderr.write(f"Not scored. {error}{hint(run)}\n")
        return 1
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader of the output has ended, as `head` does
            sys.stderr.write(f"Not scored. {error.filename or 'The output'}: {error.strerror}.{hint(run)}\n")
        if sys.stdout is not None:  # the interpreter flushes it at its end, and would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    refused = f", {run.refused} not: churn_error has the reasons" if run.refused else ""
    sys.stderr.write(f"{run.scored} rows scored{refused}.\n")
    if len(run.versions) > 1:
        counts = ", ".join(f"{version} ({rows} rows)" for version, rows in sorted(run.versions.items()))
        sys.stderr.write(f"The model was replaced meanwhile, so these versions computed them: {counts}.\n")
    return 0 if run.scored else 1


def hint(run: Run | None) -> str:
    """Say how to go on with the batches of a run that did not end, or how to cancel the last."""
    if run is None or not run.resumable():
        return ""
    batches = run.resumable()
    is_whole = batches[0][1] == run.row_count
    options = " ".join(f"--resume {one}" if is_whole else f"--resume {one}:{rows}" for one, rows in batches)
    return (
        f"\nThe service still has the batch. To fetch its results, repeat the command with the same file and {options}"
        f"\nTo cancel: curl -X DELETE {run.service.batch_url(batches[-1][0])} (with your API key, if you have one)"
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        "python -m celery_task_app.cli.score",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="CSV (commas, semicolons or tabs) with a header row; - reads standard input")
    parser.add_argument("--url", type=http_url, default="http://127.0.0.1:8000", help="of the service (%(default)s)")
    parser.add_argument("--key-file", type=Path, help="a file with your API key, if the service needs one")
    parser.add_argument("--out", type=Path, help="write this file, whole or not at all, instead of standard output")
    parser.add_argument("--threshold", type=share, metavar="T", help="add churn: yes from this probability on, or no")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="copy cells unchanged; without it, text that begins with = + - @ gets a ' so that no spreadsheet runs it",
    )
    parser.add_argument(
        "--resume",
        type=batch_of_rows,
        action="append",
        default=[],
        metavar="ID[:ROWS]",
        help="use a batch of an earlier run of the same file; for several batches in their order",
    )
    parser.add_argument(
        "--retry-for", type=seconds, default=60, metavar="S", help="seconds to retry a lost connection (%(default)s)"
    )
    return parser


def http_url(text: str) -> str:
    """Parse a URL, and drop the slash at its end."""
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://127.0.0.1:8000")
    return text.rstrip("/")


def share(text: str) -> float:
    """Parse a number in [0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return number


def seconds(text: str) -> float:
    """Parse a duration."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number


def batch_of_rows(text: str) -> tuple[str, int | None]:
    """Parse the id of a batch, and how many rows of the file it was made from; None for all."""
    batch_id, _, rows = text.partition(":")
    try:
        return str(UUID(batch_id)), int(rows) if rows else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no id of a batch") from None


def read_key(path: Path) -> str:
    """Return the API key of a file."""
    try:
        key = path.read_text("utf-8-sig").strip()
    except OSError as error:
        raise ScoreError(f"The key file {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        key = ""
    if not re.fullmatch(r"[!-~]+", key):
        raise ScoreError(f"The key file {path} has no API key: one line of letters and digits is expected.")
    return key


@contextlib.contextmanager
def readable(name: str) -> Iterator[Path]:
    """Yield a file that can be opened several times: the named file, or a copy of standard input or of a pipe."""
    path = Path(name)
    if name != "-" and (path.is_file() or not path.exists()):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if name == "-" else stack.enter_context(path.open("rb"))
        copy = Path(folder, "customers.csv")
        with copy.open("wb") as file:
            shutil.copyfileobj(source, file)
        yield copy


@contextlib.contextmanager
def opened_output(path: Path | None) -> Iterator[TextIO]:
    """Yield the output: standard output, or a file that replaces the one at the path once it is complete."""
    if path is None:
        if not isinstance(sys.stdout, io.TextIOWrapper):
            raise ScoreError("Standard output is closed: use --out.")
        sys.stdout.reconfigure(encoding="utf-8", newline="")
        yield sys.stdout
        sys.stdout.flush()
        return
    if path.exists() and not path.is_file():  # a device or a pipe can't be replaced
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    target = path.resolve()  # a link stays a link
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    # Only the owner may read customers while they are written.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        else:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
