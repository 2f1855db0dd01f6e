"""The verdict on readiness: which answers of /readyz were false, given the outcomes of predictions."""

from collections.abc import Sequence

import pytest

from tests.harness.readiness import LATE_S, SOON_S, Look, Post, judge, longest_refusal_s

LOOKS = 10


def looks(is_ready: bool, detected_within_s: float = 0) -> list[Look]:
    """Return ten looks, a second apart."""
    return [Look(at, is_ready, detected_within_s) for at in range(LOOKS)]


def computed_after(seconds: float) -> list[Post]:
    """Return a prediction for each look."""
    return [Post(at + 0.5, is_accepted=True, ended_at=at + 0.5 + seconds) for at in range(LOOKS)]


REFUSED = [Post(at + 0.5) for at in range(LOOKS)]
NEVER_COMPUTED = [Post(at + 0.5, is_accepted=True) for at in range(LOOKS)]
OVERLOADED = [Post(at + 0.5, is_neutral=True) for at in range(LOOKS)]
LONG_POLL = Post(0.5, is_accepted=True, ended_at=LOOKS, unanswered_until=LOOKS)


@pytest.mark.parametrize("posts", [REFUSED, NEVER_COMPUTED, computed_after(LATE_S + 1)])
def test_ready_is_false_from_the_third_look_if_no_prediction_is_computed_in_time(posts: Sequence[Post]) -> None:
    verdict = judge(looks(is_ready=True), posts)
    assert (verdict.false_ready_s, verdict.false_alarm_s) == (LOOKS - 3, 0)


def test_ready_is_false_if_a_long_poll_is_not_answered() -> None:
    assert judge(looks(is_ready=True), [*computed_after(0.1), LONG_POLL]).false_ready_s == LOOKS - 3


def test_not_ready_is_a_false_alarm_from_the_third_look_if_every_prediction_is_computed_soon() -> None:
    verdict = judge(looks(is_ready=False), computed_after(SOON_S - 0.5))
    assert (verdict.false_ready_s, verdict.false_alarm_s) == (0, LOOKS - 3)


def test_not_ready_is_no_false_alarm_if_a_prediction_is_refused_or_late_or_a_long_poll_is_not_answered() -> None:
    for posts in (REFUSED, computed_after(SOON_S + 1), [*computed_after(0.1), LONG_POLL], []):
        assert judge(looks(is_ready=False), posts).false_alarm_s == 0


def test_a_look_is_true_either_way_if_only_some_predictions_are_computed() -> None:
    for is_ready in (True, False):
        verdict = judge(looks(is_ready), [*computed_after(0.1), *REFUSED])
        assert (verdict.false_ready_s, verdict.false_alarm_s) == (0, 0)


def test_a_refusal_for_overload_says_nothing_about_readiness() -> None:
    assert judge(looks(is_ready=True), OVERLOADED).false_ready_s == 0


def test_the_time_to_detect_a_fault_does_not_count() -> None:
    during = looks(is_ready=True, detected_within_s=6)
    assert judge(during, REFUSED).false_ready_s == LOOKS - 1 - 6
    assert judge([Look(0, is_ready=True), *during[1:]], REFUSED).false_ready_s == LOOKS - 1 - 6  # the fault began later
    assert judge(looks(is_ready=False, detected_within_s=6), computed_after(0.1)).false_alarm_s == LOOKS - 3


def test_a_true_look_ends_a_run_of_false_ones() -> None:
    mixed = [Look(at, is_ready=at % 3 != 2) for at in range(LOOKS)]
    assert judge(mixed, REFUSED).false_ready_s == 0


def test_the_longest_refusal_lasts_until_the_next_accepted_prediction() -> None:
    accepted = [False, True, False, False, False, True, True, False, False]
    posts = [Post(at, is_accepted=one) for at, one in enumerate(accepted)]
    assert longest_refusal_s(posts) == longest_refusal_s(posts[::-1]) == 3
    assert longest_refusal_s(posts[-2:]) == 1
    assert longest_refusal_s(posts[5:7]) == 0
