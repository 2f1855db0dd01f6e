"""The stored form of a result equals the form that Celery's own backend writes and reads."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from celery.app.task import Context
from celery.result import AsyncResult
from hypothesis import given
from hypothesis import strategies as st

from celery_task_app.errors import ChurnServiceError, Deleted, InvalidPrediction, TooManyAttempts
from celery_task_app.store.celery_meta import encode_error, encode_meta, key_of

NOW = datetime(2026, 11, 26, tzinfo=UTC).isoformat()
TASK_IDS = st.uuids().map(str)


def celery_in_memory() -> Celery:
    """Return a Celery app whose result backend is one dictionary for all apps of this process."""
    return Celery(backend="cache+memory://", broker="memory://")


def stored_by_celery(task_id: str, result: object, state: str) -> dict[str, Any]:
    backend = celery_in_memory().backend
    backend.forget(task_id)  # because Celery never replaces a SUCCESS
    backend.store_result(task_id, result, state, request=Context(children=[]))
    meta: dict[str, Any] = json.loads(backend.get(backend.get_key_for_task(task_id)))
    return meta


def read_by_celery(task_id: str, stored: str) -> AsyncResult:
    app = celery_in_memory()
    app.backend.set(app.backend.get_key_for_task(task_id), stored)
    return AsyncResult(task_id, app=app)


@given(TASK_IDS)
def test_the_key_is_the_key_of_celery(task_id: str) -> None:
    backend = celery_in_memory().backend
    assert key_of(task_id).encode() == backend.get_key_for_task(task_id)


@given(TASK_IDS, st.floats(0, 1))
def test_a_success_has_the_fields_of_celery(task_id: str, probability: float) -> None:
    ours = json.loads(encode_meta(task_id, "SUCCESS", probability, NOW))
    celerys = stored_by_celery(task_id, probability, "SUCCESS")
    assert ours.keys() == celerys.keys()
    assert ours | {"date_done": ""} == celerys | {"date_done": ""}
    assert datetime.fromisoformat(celerys["date_done"]).tzinfo == datetime.fromisoformat(ours["date_done"]).tzinfo


@given(TASK_IDS, st.sampled_from([InvalidPrediction, TooManyAttempts, Deleted]), st.text())
def test_an_error_has_the_form_of_celery(task_id: str, kind: type[ChurnServiceError], message: str) -> None:
    ours = encode_error(kind(message))
    celerys = stored_by_celery(task_id, kind(message), "FAILURE")["result"]
    assert ours == celerys


@given(TASK_IDS, st.floats(0, 1))
def test_celery_reads_the_probability_to_the_last_bit(task_id: str, probability: float) -> None:
    result = read_by_celery(task_id, encode_meta(task_id, "SUCCESS", probability, NOW, model_version="v1"))
    assert result.get(timeout=1) == probability
    assert result.date_done == datetime.fromisoformat(NOW)


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
@given(task_id=TASK_IDS, message=st.text())
def test_celery_raises_the_error_that_was_stored(state: str, task_id: str, message: str) -> None:
    result = read_by_celery(task_id, encode_meta(task_id, state, encode_error(InvalidPrediction(message)), NOW))
    with pytest.raises(InvalidPrediction) as raised:
        result.get(timeout=1)
    assert raised.value.args == (message,)


def test_a_state_of_our_own_is_not_ready_for_celery() -> None:
    task_id = str(UUID(int=1))
    result = read_by_celery(task_id, encode_meta(task_id, "QUEUED", None, None, deadline=1.5))
    assert (result.state, result.ready()) == ("QUEUED", False)


@given(TASK_IDS, st.floats(0, 1e12))
def test_the_status_comes_first_because_the_scripts_compare_the_first_bytes(task_id: str, deadline: float) -> None:
    assert encode_meta(task_id, "QUEUED", None, None, deadline=deadline).startswith('{"status": "QUEUED"')
