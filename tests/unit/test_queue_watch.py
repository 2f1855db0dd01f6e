"""The estimate of the queue: the drain rate, and the time that a new prediction waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.queue_watch import DrainRate, estimate_wait_s
from celery_task_app.store.counts import STATES, Counts


def counts(waiting: int, ended: int = 0, oldest_s: float = 0.0) -> Counts:
    return Counts(waiting + ended, dict.fromkeys(STATES, 0) | {"success": ended}, oldest_s)


def rate(*samples: tuple[float, int, int]) -> float | None:
    """Return the drain rate after readings of time, ended and waiting."""
    measured = DrainRate()
    for now, ended, waiting in samples:
        measured.add(now, counts(waiting, ended))
    return measured.per_s


def test_there_is_no_rate_before_two_readings_with_waiting_customers() -> None:
    assert rate() is None
    assert rate((0, 0, 50)) is None
    assert rate((0, 0, 0), (1, 100, 0), (2, 200, 50)) is None


def test_the_rate_is_measured_while_customers_wait() -> None:
    assert rate((0, 0, 1000), (1, 300, 700), (3, 900, 100)) == 300
    assert rate((0, 0, 1000), (1, 300, 700), (2, 1000, 0), (4, 1001, 0)) == 300


def test_a_stopped_worker_has_the_rate_0() -> None:
    assert rate((0, 500, 1000), (1, 500, 1000), (2, 500, 1500)) == 0


def test_a_gap_between_readings_measures_nothing() -> None:
    assert rate((0, 0, 10), (8, 20, 10)) is None


def test_the_rate_forgets_readings_after_ten_seconds() -> None:
    slow_then_fast = [(float(second), 10 * second if second < 5 else 1000 * second, 9000) for second in range(20)]
    assert rate(*slow_then_fast) == pytest.approx(1000)


def test_an_empty_queue_takes_no_time() -> None:
    assert estimate_wait_s(counts(0, oldest_s=0), None) == 0
    assert estimate_wait_s(counts(0, oldest_s=0), 10) == 0


def test_a_long_queue_takes_its_length_divided_by_the_rate() -> None:
    assert estimate_wait_s(counts(10_000, oldest_s=0.1), 1000) == 10
    assert estimate_wait_s(counts(1_000, oldest_s=30), 1000) == 1


@pytest.mark.parametrize("drained_per_s", [None, 0.0])
def test_without_a_rate_the_age_of_the_oldest_is_the_estimate(drained_per_s: float | None) -> None:
    assert estimate_wait_s(counts(10_000, oldest_s=42), drained_per_s) == 42


def test_few_requests_do_not_make_a_short_queue_look_slow() -> None:
    """One request each two seconds, each computed at once: the rate is 0.5 a second, and the queue is short."""
    assert estimate_wait_s(counts(1, oldest_s=0.005), 0.5) == 0.005


@given(st.integers(0, 10**7), st.floats(0, 10**5), st.none() | st.floats(0, 10**5))
def test_an_estimate_is_never_negative(waiting: int, oldest_s: float, drained_per_s: float | None) -> None:
    assert estimate_wait_s(counts(waiting, oldest_s=oldest_s), drained_per_s) >= 0
