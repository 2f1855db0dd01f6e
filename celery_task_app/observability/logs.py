"""The form of log lines, for both processes: text with key=value, or JSON. Loggers are Python's own.

A field is an argument after `key=` in the format string of a record: `logger.info("batch deleted batch_id=%s", id)`.
So calls need no other interface, and the text is Python's own formatting. docs/adr/0024 has the alternatives.
"""

import asyncio
import json
import logging
import logging.handlers
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import PurePath
from textwrap import indent
from typing import Literal, TextIO, cast

_ARGUMENT = re.compile(r"(?:(?<![\w.])(\w+)=)?%(?:%|[-+ #0]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa])")
_ROOT = logging.getLogger()
_ours: list["TurnHandler"] = []
"""The handlers of the root logger, as `configure_logging` has set them; a test or another program may add one."""

_TEMPLATES = 1_024  # more than the service and its libraries have


def configure_logging(level: str | int, log_format: Literal["text", "json"], file: str | None = None) -> bool:
    """Log to standard error, or to a file, in one form; not if a program that embeds the service logs already.

    Args:
        level: the least level that is logged.
        log_format: of the lines.
        file: the path of a log file, which may be rotated.

    Returns:
        Whether the form was set.
    """
    if any(not isinstance(handler.formatter, TextFormatter) for handler in _ROOT.handlers):
        return False
    handler = logging.handlers.WatchedFileHandler(file, encoding="utf-8") if file else TurnHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    handler.setLevel(level.upper() if isinstance(level, str) else level)  # a server may set a level of its own loggers
    _ROOT.handlers = [handler]
    _ours[:] = [handler] if isinstance(handler, TurnHandler) else []
    # Optimizations of Python's logging cookbook: no line has these attributes of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # from Python 3.12 on
    _ROOT.setLevel(handler.level)
    return True


def log_event(logger: logging.Logger, level: int, event: str, fields: Mapping[str, object]) -> None:
    """Log an event whose fields, at least one, are known only when it happens."""
    if not logger.isEnabledFor(level):
        return
    if _ours and _ROOT.handlers == _ours:
        _ours[0].write_event(logger.name, level, event, fields)
    else:
        logger.log(level, _template(event, tuple(fields)), *fields.values(), stacklevel=2)


def stack_of(error: BaseException) -> str:
    """Return the places in the code that an exception has passed, outermost first: `folder/file.py:line>...`.

    Use it where the text of an exception may have a customer's values.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return ">".join(f"{'/'.join(PurePath(frame.f_code.co_filename).parts[-2:])}:{line}" for frame, line in frames)


class TurnHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of one turn of an event loop together; without an event loop, each at once.

    A write releases the GIL, and the thread that publishes may then hold it for milliseconds. A process that is killed
    loses the lines of its last turn. docs/adr/0024 has the gain.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to a stream."""
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line of a record until the next turn of the event loop of this thread, if there is one."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler
            self.handleError(record)
        else:
            self._append(line)

    def write_event(self, name: str, level: int, event: str, fields: Mapping[str, object]) -> None:
        """Write the line of an event without a LogRecord, which would cost more than the line."""
        head = (_utc(time.time()), logging.getLevelName(level), name)
        self._append(cast("TextFormatter", self.formatter).format_event(head, event, fields))

    def _append(self, line: str) -> None:
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            if len(self._lines) == 1:
                loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write all lines."""
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                with suppress(OSError, ValueError):  # a full disk, or a closed stream: the service goes on
                    self.stream.write("\n".join([*lines, ""]))
                    self.stream.flush()


class TextFormatter(logging.Formatter):
    """One line for a record: time (UTC), level, logger and message. Further lines of it begin with two blanks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record; no text in it looks like another record."""
        message = record.getMessage()
        if not message.isprintable():
            message = "\n  ".join(_printable(line) for line in message.rstrip("\n").split("\n"))
        line = f"{_utc(record.created)} {record.levelname} {record.name} {message}"
        details = self._details(record)
        return f"{line}\n{indent(details, '  ')}" if details else line

    def _details(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        return "\n".join([*parts, self.formatStack(record.stack_info)] if record.stack_info else parts)

    def format_event(self, head: tuple[str, str, str], event: str, fields: Mapping[str, object]) -> str:
        """Return the line of an event, given its time, level and logger."""
        line = " ".join([*head, event, *[f"{name}={value}" for name, value in fields.items()]])
        return line if line.isprintable() else "\n  ".join(map(_printable, line.split("\n")))


class JSONFormatter(TextFormatter):
    """One JSON object for a record: `time`, `level`, `logger`, `event`, the fields, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of a record."""
        event, fields = _split(record)
        head = {"time": _utc(record.created), "level": record.levelname.lower(), "logger": record.name, "event": event}
        if details := self._details(record):
            fields["exception"] = details
        return json.dumps(head | {name: value for name, value in fields.items() if name not in head}, default=str)

    def format_event(self, head: tuple[str, str, str], event: str, fields: Mapping[str, object]) -> str:
        """Return the object of an event; see TextFormatter."""
        moment, level, name = head
        line = {"time": moment, "level": level.lower(), "logger": name, "event": event}
        return json.dumps(line | {key: value for key, value in fields.items() if key not in line}, default=str)


def _split(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """Return the text of a record without its fields, and the fields."""
    if not record.args or not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return record.getMessage(), {}
    event, names = _parse(record.msg)
    if len(names) != len(record.args):
        return record.getMessage(), {}
    fields, texts = dict[str, object](), []
    for (name, is_repr), value in zip(names, record.args, strict=True):
        if not name:
            texts.append(value)
        elif is_repr:
            fields[name] = repr(value)
        else:
            fields[name] = value if isinstance(value, int | float | None) else str(value)
    return event % tuple(texts), fields


@lru_cache(_TEMPLATES)
def _parse(template: str) -> tuple[str, Sequence[tuple[str, bool]]]:
    """Return a format string without its fields; for each argument the name of its field, and whether it is `%r`."""
    names: list[tuple[str, bool]] = []

    def leave_out(match: re.Match[str]) -> str:
        if match[0].endswith("%%"):
            return match[0]
        names.append((match[1] or "", match[0].endswith("r")))
        return "" if match[1] else match[0]

    event = _ARGUMENT.sub(leave_out, template)
    return " ".join(event.split()), names


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


@lru_cache(_TEMPLATES)
def _template(event: str, names: tuple[str, ...]) -> str:
    return " ".join([event.replace("%", "%%"), *(f"{name}=%s" for name in names)])


@lru_cache(1)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _utc(seconds: float) -> str:
    second = int(seconds)
    return f"{_utc_second(second)}.{int((seconds - second) * 1000):03d}Z"
