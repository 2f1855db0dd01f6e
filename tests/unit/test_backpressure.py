"""Back-pressure: when the estimate of waiting customers is read, when it refuses, and for how long."""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.backpressure import Backlog
from celery_task_app.errors import BrokerUnavailable, Overloaded


class Clock:
    """A monotonic clock that the test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def backlog(clock: Clock, high_water: int, depth: Callable[[], int], message_sizes: list[int]) -> Backlog:
    estimate = Backlog("churn", high_water, depth, clock)
    for size in message_sizes:
        estimate.record_published(size)
    return estimate


def test_an_unread_queue_refuses_no_customer(clock: Clock) -> None:
    backlog(clock, 0, lambda: 1_000, []).refuse_if_full()


def test_the_depth_is_read_once_a_second(clock: Clock) -> None:
    reads: list[float] = []

    def depth() -> int:
        reads.append(clock.now_s)
        return 0

    estimate = backlog(clock, 25, depth, [])
    for _ in range(30):
        estimate.check()
        clock.now_s += 0.25
    assert reads == [1000 + second for second in range(8)]


def test_a_full_queue_refuses_for_a_second_and_reads_nothing(clock: Clock) -> None:
    reads: list[float] = []

    def depth() -> int:
        reads.append(clock.now_s)
        return 3

    estimate = backlog(clock, 25, depth, [10, 10, 10])
    with pytest.raises(Overloaded):
        estimate.check()
    with pytest.raises(Overloaded, match=r"^too many customers wait to be predicted$"):
        estimate.refuse_if_full()
    with pytest.raises(Overloaded):
        estimate.check()
    assert len(reads) == 1
    clock.now_s += 1
    estimate.refuse_if_full()
    assert len(reads) == 1


def test_a_queue_with_room_refuses_no_customer(clock: Clock) -> None:
    estimate = backlog(clock, 30, lambda: 3, [10, 10, 10])
    estimate.check()
    estimate.refuse_if_full()


@pytest.mark.parametrize(
    ("depths", "after_s"),
    [
        ([150], 1),  # the first reading: the rate is unknown
        ([150, 140], 4),  # 100 customers in a second, 400 too many
        ([150, 149], 49),
        ([150, 145, 140], 8),  # 100 customers in two seconds
        ([150, 150], 50),  # assume one message in this second
        ([900, 899], 60),  # the longest
        ([150, 140, 100, 110], 1),  # the rate of an earlier second
    ],
)
def test_retry_after_is_the_excess_divided_by_the_drain_rate(clock: Clock, depths: list[int], after_s: int) -> None:
    measured = iter(depths)
    estimate = backlog(clock, 1000, lambda: next(measured), [10] * 1000)
    for _ in depths[1:]:
        with contextlib.suppress(Overloaded):
            estimate.check()
        clock.now_s += 1
    with pytest.raises(Overloaded) as refused:
        estimate.check()
    assert refused.value.retry_after_s == after_s


def test_the_size_of_a_message_is_the_mean_of_the_last_ones_published(clock: Clock) -> None:
    backlog(clock, 100, lambda: 10, [256] * 50 + [1] * 10).check()


def test_the_sizes_of_the_last_1000_messages_are_remembered(clock: Clock) -> None:
    backlog(clock, 1010, lambda: 1010, [256] * 10 + [1] * 1000).check()


def test_a_broker_without_an_answer_refuses_no_customer(clock: Clock) -> None:
    answers: list[int | BrokerUnavailable] = [1_000, BrokerUnavailable("away")]

    def depth() -> int:
        answer = answers.pop(0)
        if isinstance(answer, BrokerUnavailable):
            raise answer
        return answer

    estimate = backlog(clock, 25, depth, [])
    with pytest.raises(Overloaded):
        estimate.check()
    clock.now_s += 1
    estimate.check()
    estimate.refuse_if_full()


@given(
    depths=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
    sizes=st.lists(st.integers(1, 256), max_size=50),
    high_water=st.integers(1, 10**6),
)
def test_retry_after_is_between_1_and_60_seconds(depths: list[int], sizes: list[int], high_water: int) -> None:
    clock, measured = Clock(), iter(depths)
    estimate = backlog(clock, high_water, lambda: next(measured), sizes)
    for depth in depths:
        refused: Overloaded | None = None
        try:
            estimate.check()
        except Overloaded as error:
            refused = error
        if refused:
            assert 1 <= refused.retry_after_s <= 60
            assert depth * max(sizes, default=1) > high_water
        else:
            assert depth * min(sizes, default=1) <= high_water
        clock.now_s += 1
