"""The delivery policy without servers: faulty customers fail alone, and calls are repeated until a deadline."""

import time
from collections.abc import Sequence

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from hypothesis import given
from hypothesis import strategies as st

from celery_task_app.consumer.delivery import MAX_RETRIES, attempts_exhausted, predict_each, retry_until
from celery_task_app.errors import InvalidPrediction, ResultStoreUnavailable, TooManyAttempts


class Model:
    """A model that fails if one of the faulty ids is among those asked for, and counts its calls."""

    def __init__(self, faulty: set[int]) -> None:
        self.faulty = faulty
        self.calls = 0

    def predict(self, ids: Sequence[int]) -> list[float]:
        self.calls += 1
        if self.faulty & set(ids):
            raise InvalidPrediction(f"{len(ids)} customers")
        return [one / 1000 for one in ids]


def test_customers_are_predicted_in_one_call() -> None:
    model = Model(set())
    assert predict_each(model.predict, [3, 1, 2]) == {3: 0.003, 1: 0.001, 2: 0.002}
    assert model.calls == 1


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=256, unique=True), st.data())
def test_faulty_customers_fail_alone(ids: list[int], data: st.DataObject) -> None:
    faulty = set(data.draw(st.lists(st.sampled_from(ids), max_size=5)))
    model = Model(faulty)
    outcomes = predict_each(model.predict, ids)
    assert list(outcomes) == ids
    for one, outcome in outcomes.items():
        if one in faulty:
            assert isinstance(outcome, InvalidPrediction)
            assert str(outcome) == "1 customers"
        else:
            assert outcome == one / 1000
    assert model.calls <= 1 + 2 * len(faulty) * 8  # 256 customers are bisected in eight steps


@pytest.mark.parametrize("ids", [[1], [1, 2, 3]])
def test_a_time_limit_inside_the_model_is_not_a_failure_of_a_customer(ids: list[int]) -> None:
    calls = []

    def predict(asked: Sequence[int]) -> list[float]:
        calls.append(asked)
        raise InvalidPrediction("the model failed") from SoftTimeLimitExceeded()

    with pytest.raises(SoftTimeLimitExceeded):
        predict_each(predict, ids)
    assert calls == [ids]


def test_other_errors_of_a_model_are_not_failures_of_customers() -> None:
    def predict(_ids: Sequence[int]) -> list[float]:
        raise MemoryError

    with pytest.raises(MemoryError):
        predict_each(predict, [1, 2])


def test_a_model_that_returns_too_few_probabilities_is_a_defect() -> None:
    with pytest.raises(ValueError, match="shorter"):
        predict_each(lambda ids: [0.5] * (len(ids) - 1), [1, 2, 3])


def test_a_customer_has_four_attempts() -> None:
    assert MAX_RETRIES == 3
    assert isinstance(attempts_exhausted(MAX_RETRIES + 1), TooManyAttempts)
    assert "4 attempts" in str(attempts_exhausted(MAX_RETRIES + 1))


class Store:
    """A result store that is unavailable for its first calls."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def read(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ResultStoreUnavailable("away")
        return "a state"


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_call_is_repeated_while_the_store_is_unavailable(failures: int) -> None:
    store = Store(failures)
    assert retry_until(time.monotonic() + 10, store.read) == "a state"
    assert store.calls == failures + 1


def test_a_call_is_not_repeated_after_the_deadline() -> None:
    store = Store(1)
    with pytest.raises(ResultStoreUnavailable):
        retry_until(time.monotonic() - 1, store.read)
    assert store.calls == 1


def test_a_call_that_succeeds_after_the_deadline_counts() -> None:
    assert retry_until(time.monotonic() - 1, Store(0).read) == "a state"


def test_another_error_is_not_retried() -> None:
    calls = []

    def read() -> str:
        calls.append(1)
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        retry_until(time.monotonic() + 10, read)
    assert len(calls) == 1
