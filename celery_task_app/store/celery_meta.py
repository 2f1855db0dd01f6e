"""The form in which Celery's Redis backend stores a result, so that `AsyncResult(task_id, app=app)` reads ours.

The form is written here, not by Celery, because the Lua scripts write many results in one call.
"""

import json
from typing import Any

from celery.backends.base import KeyValueStoreBackend

_PREFIX: str = KeyValueStoreBackend.task_keyprefix


def key_of(task_id: str) -> str:
    """Return the key under which Celery stores the result of a task."""
    return f"{_PREFIX}{task_id}"


def encode_meta(task_id: str, status: str, result: object, date_done: str | None, **more: object) -> str:
    """Return a result as Celery's JSON; the status comes first, so that a Lua script can compare the first bytes.

    The fields of our own follow it, because scripts/counts.lua looks for the first of a QUEUED marker there.

    Args:
        task_id: the id of the task.
        status: a state of Celery, or one of our own.
        result: the return value, or the error as `encode_error` returns it.
        date_done: the end of the task in ISO 8601; None while it is not finished.
        more: fields of our own, which Celery ignores.
    """
    meta = {"result": result, "traceback": None, "children": [], "date_done": date_done, "task_id": task_id}
    return json.dumps({"status": status, **more, **meta})


def encode_error(error: Exception) -> dict[str, Any]:
    """Return an exception in the form from which Celery raises it again."""
    kind = type(error)
    return {"exc_type": kind.__name__, "exc_message": [str(error)], "exc_module": kind.__module__}
