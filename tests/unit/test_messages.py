"""The messages in the queue: their wire form, which other versions of the service read and write too."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_task_app.errors import MalformedMessage
from celery_task_app.messaging.messages import ChunkMessage, Features, PredictionMessage, PredictionRequest
from celery_task_app.worker import BATCHES, PREDICT_TASK, PREDICTIONS, SCORE_TASK

VALUES = st.text() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text().filter(lambda name: name != "?explain")
FEATURES: st.SearchStrategy[Features] = st.dictionaries(NAMES, VALUES, max_size=5)
TRACEPARENTS = st.sampled_from(["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])
REQUESTS = st.builds(PredictionRequest, FEATURES, st.booleans(), TRACEPARENTS)
PREDICTIONS_BY_ID = st.dictionaries(st.uuids().map(str), REQUESTS, min_size=1, max_size=10)


@st.composite
def chunks(draw: st.DrawFn) -> ChunkMessage:
    rows = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=10, unique=True))
    values = st.lists(VALUES, min_size=len(rows), max_size=len(rows))
    columns = draw(st.dictionaries(st.text(), values, min_size=1, max_size=4))
    batch_id, chunk, traceparent = str(draw(st.uuids())), draw(st.integers(0, 1000)), draw(TRACEPARENTS)
    return ChunkMessage.from_columns(batch_id, chunk, rows, columns, traceparent)


def over_the_wire(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Encode and decode keyword arguments as Celery does."""
    decoded: dict[str, Any] = json.loads(json.dumps(kwargs))
    return decoded


def test_messages_have_their_task_and_their_queue() -> None:
    assert (PredictionMessage.task_name, PredictionMessage.queue) == (PREDICT_TASK, PREDICTIONS)
    assert (ChunkMessage.task_name, ChunkMessage.queue) == (SCORE_TASK, BATCHES)
    assert PREDICT_TASK == "celery_task_app.tasks.predict_churn"
    assert SCORE_TASK == "celery_task_app.chunk_task.score_chunk"


def test_the_wire_form_of_predictions() -> None:
    plain, explained = PredictionRequest({"a": 1}), PredictionRequest({"a": 2}, explain=True)
    assert PredictionMessage({"x": plain}).kwargs() == {"customers": {"x": {"a": 1}}}
    assert PredictionMessage({"x": plain, "y": explained}).kwargs() == {
        "customers": {"x": {"a": 1}, "y": {"a": 2}},
        "explain": ["y"],
    }
    traced = PredictionRequest({"a": 3}, traceparent="00-1-2-01")
    message = PredictionMessage({"x": plain, "z": traced})
    assert message.kwargs() == {"customers": {"x": {"a": 1}, "z": {"a": 3}}, "traces": {"z": "00-1-2-01"}}
    assert message.traceparents == {"z": "00-1-2-01"}


def test_the_wire_form_of_a_chunk() -> None:
    message = ChunkMessage.from_columns("b", 3, [5, 7], {"a": [1, 2], "b": ["F", "M"]})
    assert message.kwargs() == {
        "batch_id": "b",
        "chunk": 3,
        "content": '{"rows":[5,7],"customers":{"a":[1,2],"b":["F","M"]}}',
    }
    traced = ChunkMessage("b", 3, message.content, "00-1-2-01")
    assert traced.kwargs() == {**message.kwargs(), "traceparent": "00-1-2-01"}
    assert (traced.traceparents, message.traceparents) == ({"b": "00-1-2-01"}, {})


@given(PREDICTIONS_BY_ID)
def test_predictions_survive_a_round_trip(requests: dict[str, PredictionRequest]) -> None:
    message = PredictionMessage(requests)
    assert PredictionMessage.parse(over_the_wire(message.kwargs())) == message
    assert list(message.ids) == list(requests)


@given(chunks())
def test_a_chunk_survives_a_round_trip(message: ChunkMessage) -> None:
    parsed = ChunkMessage.parse(over_the_wire(message.kwargs()))
    assert parsed == message
    assert (parsed.rows, parsed.columns) == (message.rows, message.columns)
    assert list(parsed.ids) == parsed.rows


@given(PREDICTIONS_BY_ID)
def test_an_explain_flag_among_the_features_is_parsed_as_a_request_for_reasons(
    requests: dict[str, PredictionRequest],
) -> None:
    customers = {
        task_id: {**request.features, "?explain": True} if request.explain else request.features
        for task_id, request in requests.items()
    }
    message = PredictionMessage(requests)
    assert PredictionMessage.parse({"customers": customers, "traces": message.traceparents}) == message


@given(PREDICTIONS_BY_ID, st.data())
def test_predictions_are_split_into_one_message_each(
    requests: dict[str, PredictionRequest], data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.sampled_from(sorted(requests)), unique=True))
    singles = list(PredictionMessage(requests).split(some))
    assert singles == [PredictionMessage({task_id: requests[task_id]}) for task_id in some]
    assert [single.task_id for single in singles] == some


@given(chunks(), st.data())
def test_a_chunk_is_split_into_one_message_for_each_row(message: ChunkMessage, data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(message.rows), unique=True))
    for row, single in zip(some, message.split(some), strict=True):
        place = message.rows.index(row)
        assert (single.batch_id, single.chunk, single.rows) == (message.batch_id, message.chunk, [row])
        assert single.columns == {name: [values[place]] for name, values in message.columns.items()}
        assert single.traceparents == message.traceparents
        assert ChunkMessage.parse(over_the_wire(single.kwargs())) == single


def test_only_a_message_with_one_prediction_has_its_task_id() -> None:
    request = PredictionRequest({})
    assert PredictionMessage({"x": request}).task_id == "x"
    assert PredictionMessage({"x": request, "y": request}).task_id is None
    assert ChunkMessage.from_columns("b", 0, [1], {"a": [1]}).task_id is None


def test_a_log_line_about_a_message_has_ids_and_no_feature() -> None:
    predictions = PredictionMessage({"x": PredictionRequest({"a": "secret"}), "y": PredictionRequest({})})
    chunk = ChunkMessage.from_columns("b", 3, [5], {"a": ["secret"]})
    assert predictions.log_fields == {"task_ids": "x,y"}
    assert chunk.log_fields == {"batch_id": "b", "chunk": 3}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"customers": {}},
        {"customers": None},
        {"customers": 5},
        {"customers": []},
        {"customers": [{}]},
        {"customers": {"x": 5}},
        {"customers": {"x": {}, "y": None}},
        {"customers": {"x": {}}, "explain": "x"},
        {"customers": {"x": {}}, "explain": None},
        {"customers": {"x": {}}, "traces": "x"},
        {"customers": {"x": {}}, "traces": {"x": 5}},
        {"customers": {"x": {}}, "more": 1},
        {"explain": []},
        {"batch_id": "b", "chunk": 0, "content": "{}"},
    ],
    ids=str,
)
def test_other_arguments_are_no_predictions(kwargs: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        PredictionMessage.parse(kwargs)


CONTENT = '{"rows":[0],"customers":{"a":[1]}}'


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"customers": {"x": {}}},
        {"content": 5},
        {"batch_id": "b", "chunk": 0},
        {"batch_id": "b", "chunk": 0, "content": CONTENT, "more": 1},
        {"batch_id": "b", "chunk": 0, "content": CONTENT, "traceparent": 5},
        {"batch_id": 5, "chunk": 0, "content": CONTENT},
        {"batch_id": "b", "chunk": "0", "content": CONTENT},
        {"batch_id": "b", "chunk": None, "content": CONTENT},
    ],
    ids=str,
)
def test_other_arguments_are_no_chunk(kwargs: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        ChunkMessage.parse(kwargs)


@pytest.mark.parametrize(
    "content",
    [
        5,
        None,
        [],
        "",
        "{",
        "5",
        "[1]",
        "null",
        "{}",
        '{"rows":[0]}',
        '{"customers":{"a":[1]}}',
        '{"rows":[],"customers":{}}',
        '{"rows":[0],"customers":{}}',
        '{"rows":[],"customers":{"a":[]}}',
        '{"rows":0,"customers":{"a":[1]}}',
        '{"rows":["0"],"customers":{"a":[1]}}',
        '{"rows":[null],"customers":{"a":[1]}}',
        '{"rows":[0],"customers":5}',
        '{"rows":[0],"customers":[[1]]}',
        '{"rows":[0],"customers":{"a":1}}',
        '{"rows":[0],"customers":{"a":[1,2]}}',
        '{"rows":[0,1],"customers":{"a":[1,2],"b":[1]}}',
        '{"rows":[0],"customers":{"a":[1],"b":[]}}',
        '{"rows":[0],"customers":{"a":"x"}}',
        '{"rows":[0],"customers":{"a":{"x":1}}}',
        "[" * 10_000,
    ],
    ids=lambda content: str(content)[:50],
)
def test_other_content_is_no_chunk(content: object) -> None:
    with pytest.raises(MalformedMessage):
        ChunkMessage.parse({"batch_id": "b", "chunk": 0, "content": content})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
CHUNK_CONTENT = st.fixed_dictionaries({"rows": JSON, "customers": st.dictionaries(st.text(), JSON, max_size=3) | JSON})


@given(
    st.dictionaries(st.sampled_from(["customers", "explain", "batch_id", "chunk", "content", "more"]), JSON)
    | st.fixed_dictionaries({"customers": st.dictionaries(st.text(), JSON)}, optional={"explain": JSON})
    | st.fixed_dictionaries({"batch_id": JSON, "chunk": JSON, "content": JSON})
    | st.fixed_dictionaries({"batch_id": st.text(), "chunk": st.integers(), "content": CHUNK_CONTENT.map(json.dumps)})
)
def test_any_arguments_are_a_message_or_malformed(kwargs: dict[str, Any]) -> None:
    for kind in (PredictionMessage, ChunkMessage):
        try:
            message = kind.parse(kwargs)
        except MalformedMessage:
            continue
        assert kind.parse(over_the_wire(message.kwargs())).kwargs() == over_the_wire(message.kwargs())
        assert [single.ids for single in message.split(message.ids)] == [[each] for each in message.ids]  # type: ignore[arg-type]


def test_a_malformed_message_is_not_repeated_in_its_error() -> None:
    for kwargs in ({"customers": {"x": "secret"}}, {"batch_id": "b", "chunk": 0, "content": '{"secret": 1}'}):
        for kind in (PredictionMessage, ChunkMessage):
            with pytest.raises(MalformedMessage) as malformed:
                kind.parse(kwargs)
            assert "secret" not in str(malformed.value)
