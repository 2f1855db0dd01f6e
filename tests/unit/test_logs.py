"""The form of log lines: one line for a record in text, one object in JSON, with the same fields."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_task_app.observability.logs import JSONFormatter, TextFormatter, TurnHandler, log_event, stack_of


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("a.logger", logging.WARNING, "", 0, message, arguments, None)


def text(message: str, *arguments: object) -> str:
    return TextFormatter().format(record(message, *arguments))


def parsed(message: str, *arguments: object) -> dict[str, object]:
    fields: dict[str, object] = json.loads(JSONFormatter().format(record(message, *arguments)))
    assert str(fields.pop("time")).endswith("Z")
    assert (fields.pop("level"), fields.pop("logger")) == ("warning", "a.logger")
    return fields


def test_a_text_line_has_time_level_logger_and_message() -> None:
    line = text("batch deleted batch_id=%s rows=%d", "b", 5)
    time, *rest = line.split(" ")
    assert len(time) == len("2026-11-26T10:00:00.000Z")
    assert rest == ["WARNING", "a.logger", "batch", "deleted", "batch_id=b", "rows=5"]


def test_a_json_line_has_the_fields_with_their_types() -> None:
    assert parsed("batch deleted: %s batch_id=%s rows=%d ms=%.1f worker=%s", "no broker", "b", 5, 1.25, None) == {
        "event": "batch deleted: no broker",
        "batch_id": "b",
        "rows": 5,
        "ms": 1.25,
        "worker": None,
    }


def test_the_type_of_an_error_is_kept_where_its_repr_is_logged() -> None:
    assert parsed("lost error=%r", ValueError("x")) == {"event": "lost", "error": "ValueError('x')"}


def test_a_message_without_fields_is_the_event() -> None:
    assert parsed("Connected to %s, 100%%", "a broker") == {"event": "Connected to a broker, 100%"}
    assert parsed("no arguments, 5% k=%s and 97%") == {"event": "no arguments, 5% k=%s and 97%"}


def test_a_message_with_named_arguments_is_the_event() -> None:
    assert parsed("task %(name)s", {"name": "x"}) == {"event": "task x"}


@given(st.text(), st.text())
def test_no_argument_imitates_a_record_in_either_form(first: str, second: str) -> None:
    lines = text("event key=%s %s", first, second).split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert JSONFormatter().format(record("event key=%s %s", first, second)).isprintable()
    assert parsed("event key=%s", first) == {"event": "event", "key": first}


@given(st.dictionaries(st.from_regex("[a-z_]{1,9}", fullmatch=True), st.integers() | st.text(), min_size=1), st.text())
def test_an_event_has_exactly_its_fields(fields: dict[str, object], event: str) -> None:
    records: list[logging.LogRecord] = []
    logger = logging.Logger("test")  # noqa: LOG001 - one that no other test sees
    logger.handle = records.append  # type: ignore[assignment,method-assign]
    log_event(logger, logging.INFO, event, fields)
    line = json.loads(JSONFormatter().format(records[0]))
    head = {"time": line["time"], "level": "info", "logger": "test", "event": " ".join(event.split())}
    assert line == fields | head  # no field takes the place of a member that each line has


def test_a_traceback_follows_the_line_and_is_a_member_in_json() -> None:
    try:
        int("told")
    except ValueError:
        failed = logging.LogRecord("a.logger", logging.ERROR, "", 0, "failed id=%s", ("1",), sys.exc_info())
    last = "ValueError: invalid literal for int() with base 10: 'told'"
    assert TextFormatter().format(failed).splitlines()[-1] == f"  {last}"
    assert json.loads(JSONFormatter().format(failed))["exception"].splitlines()[-1] == last


def test_the_stack_of_an_error_has_places_and_not_its_text() -> None:
    def fail() -> None:
        raise ValueError("a secret")

    with pytest.raises(ValueError, match="a secret") as caught:
        fail()
    stack = stack_of(caught.value)
    assert [place.rpartition(":")[0] for place in stack.split(">")] == ["unit/test_logs.py"] * 2
    assert "secret" not in stack


@given(
    st.dictionaries(st.from_regex("f_[a-z]{1,9}", fullmatch=True), st.integers() | st.text() | st.none(), min_size=1)
)
@pytest.mark.parametrize("formatter", [TextFormatter(), JSONFormatter()])
def test_an_event_has_the_same_line_with_a_record_and_without(formatter: TextFormatter, fields: dict[str, Any]) -> None:
    template = " ".join(["an event", *(f"{name}=%s" for name in fields)])
    with_record = formatter.format(record(template, *fields.values()))
    moment = "2026-11-26T10:00:00.000Z"
    without = formatter.format_event((moment, "WARNING", "a.logger"), "an event", fields)
    assert without[len(moment) :] == with_record[len(moment) :] or json.loads(without) == {
        **json.loads(with_record),
        "time": moment,
    }


class Writes(io.StringIO):
    """A stream that counts its writes."""

    count = 0

    def write(self, text: str) -> int:
        self.count += 1
        return super().write(text)


def test_the_lines_of_one_turn_of_an_event_loop_are_written_together_and_in_order() -> None:
    stream = Writes()
    handler = TurnHandler(stream)
    handler.setFormatter(TextFormatter())

    def log(number: int) -> None:
        handler.handle(record("line n=%d", number))

    async def log_three() -> None:
        for number in (1, 2):
            log(number)
        handler.write_event("a.logger", logging.WARNING, "line", {"n": 3})
        assert stream.count == 1
        await asyncio.to_thread(log, 4)  # a thread without an event loop writes the lines before its own too

    log(0)
    assert stream.count == 1
    asyncio.run(log_three())
    assert [line.rpartition("=")[2] for line in stream.getvalue().splitlines()] == ["0", "1", "2", "3", "4"]
    assert stream.count <= 3


def test_a_stream_that_cannot_be_written_stops_nothing() -> None:
    stream = Writes()
    handler = TurnHandler(stream)
    stream.close()
    handler.handle(record("lost"))


PROGRAM = """
import logging, sys
if sys.argv[1] == "embedded":
    logging.basicConfig(format="mine %(message)s")
from celery_task_app.observability.logs import configure_logging
print(configure_logging("debug", "json", sys.argv[2] or None), configure_logging("info", "text", sys.argv[2] or None))
logging.getLogger("x").debug("left out")
logging.getLogger("x").warning("kept")
"""


def run(mode: str, file: str = "") -> tuple[str, list[str]]:
    """Return the output of a program, and its lines on standard error."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode, file], check=True, capture_output=True, text=True)
    return done.stdout.strip(), done.stderr.splitlines()


def test_the_last_configuration_holds_and_logs_each_record_once() -> None:
    printed, (line,) = run("alone")
    assert (printed, line.split(" ", 1)[1]) == ("True True", "WARNING x kept")


def test_a_program_that_embeds_the_service_keeps_its_own_form() -> None:
    assert run("embedded") == ("False False", ["mine kept"])


def test_a_log_file_has_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    assert run("alone", str(path)) == ("True True", [])
    assert path.read_text().split(" ", 1)[1] == "WARNING x kept\n"
