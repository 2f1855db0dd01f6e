"""The comparison of the service-wide counts with a ledger: which differences are found, and which ones are allowed."""

import pytest

from celery_task_app.store.counts import Counts
from tests.harness.counts import counts, difference, imbalances

RECORDED = {"success": 5, "failure": 1}


def test_equal_counts_balance() -> None:
    assert imbalances(counts(6, success=5, failure=1), RECORDED) == []
    assert imbalances(counts(0), {}) == []


@pytest.mark.parametrize(
    "counted",
    [
        counts(5, success=5),  # one is missing
        counts(7, success=6, failure=1),  # one more
        counts(6, success=6),  # in another state
        counts(6, success=4, failure=1, deleted=1),
        counts(6, success=4, failure=1, expired=1),
        counts(6, success=5),  # one waits
        counts(5, success=5, failure=1),  # one ended that was not accepted
        counts(-6, success=-6),  # the result store has lost its data
    ],
    ids=str,
)
def test_counts_that_differ_are_named(counted: Counts) -> None:
    assert imbalances(counted, RECORDED)


def test_an_unclear_response_may_be_counted_once_in_any_state_but_expired() -> None:
    for state in ("success", "failure", "deleted"):
        ended = {**RECORDED, state: RECORDED.get(state, 0) + 2}
        assert imbalances(counts(8, **ended), RECORDED, may_be_more=2) == []
        assert imbalances(counts(8, **ended), RECORDED, may_be_more=1) != []
    assert imbalances(counts(7, **RECORDED, expired=1), RECORDED, may_be_more=1) == ["1 expired, but the ledger has 0"]
    assert imbalances(counts(5, success=4, failure=1), RECORDED, may_be_more=9) == [
        "5 accepted, but the ledger has 6 to 15",
        "4 success, but the ledger has 5 to 14",
    ]


def test_a_difference_is_taken_of_each_number() -> None:
    assert difference(counts(9, success=7, failure=2), counts(3, success=3)) == counts(6, success=4, failure=2)
