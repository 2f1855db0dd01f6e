"""Was readiness true? Compares the answers of /readyz with the outcomes of the predictions that were sent meanwhile.

This module sends nothing. Times are those of `time.monotonic()`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

SOON_S = 1  # an answer is at most a second old, and asked for once a second: both together are the free looks
LATE_S = 5
FREE_LOOKS = 2

Falsehood = Literal["", "false ready", "false alarm"]


@dataclass(frozen=True)
class Look:
    """An answer of /readyz, which holds until the next one.

    Attributes:
        at: when the answer came.
        is_ready: the status was 200. A missing answer is not ready.
        detected_within_s: seconds that readiness may need to detect the fault of that time.
        text: status and body.
    """

    at: float
    is_ready: bool
    detected_within_s: float = 0
    text: str = ""


@dataclass
class Post:
    """A prediction that was sent.

    Attributes:
        sent_at: when.
        is_accepted: the status was 202, or 200 with a result.
        ended_at: when a client saw its result; None if no client did.
        unanswered_until: when a long-poll ended without the result although there was one; None if it did not.
        is_neutral: the outcome says nothing about readiness.
    """

    sent_at: float
    is_accepted: bool = False
    ended_at: float | None = None
    unanswered_until: float | None = None
    is_neutral: bool = False

    def ended_within(self, limit_s: float) -> bool:
        return self.is_accepted and self.ended_at is not None and self.ended_at - self.sent_at <= limit_s


@dataclass
class Verdict:
    """The seconds in which readiness was false.

    Attributes:
        false_ready_s: 200, although no prediction could be computed.
        false_alarm_s: no 200, although all predictions were computed soon.
        details: each false answer that counts.
    """

    false_ready_s: float = 0
    false_alarm_s: float = 0
    details: list[str] = field(default_factory=list)


def judge(looks: Sequence[Look], posts: Sequence[Post]) -> Verdict:
    """Judge each look by the predictions that were sent between its answer and the next one.

    The first FREE_LOOKS of consecutive false looks do not count. After a false ready, nor do those that began within
    `detected_within_s` of the first of them.
    """
    verdict = Verdict()
    windows = [
        (look, following.at, falsehood(look, following.at, posts)) for look, following in itertools.pairwise(looks)
    ]
    for kind, group in itertools.groupby(windows, key=lambda window: window[2]):
        run = list(group)
        first = run[0][0]
        # The first look may be from before the fault: it holds until the next one.
        free_s = max(look.detected_within_s for look, _, _ in run) if kind == "false ready" else 0
        counted = [window for window in run[FREE_LOOKS:] if kind and window[0].at - first.at >= free_s]
        seconds = sum(end - look.at for look, end, _ in counted)
        if kind == "false ready":
            verdict.false_ready_s += seconds
        else:
            verdict.false_alarm_s += seconds
        verdict.details += [f"{kind} for {end - look.at:.1f} s: {look.text}" for look, end, _ in counted]
    return verdict


def falsehood(look: Look, until: float, posts: Sequence[Post]) -> Falsehood:
    """Tell how a look was false. Nothing is false if no prediction, or only some predictions, could be computed."""
    told = [post for post in posts if look.at <= post.sent_at < until and not post.is_neutral]
    if not told:
        return ""
    has_unanswered = any(post.sent_at < until and (post.unanswered_until or 0) > look.at for post in posts)
    if look.is_ready:
        return "false ready" if has_unanswered or not any(post.ended_within(LATE_S) for post in told) else ""
    return "false alarm" if not has_unanswered and all(post.ended_within(SOON_S) for post in told) else ""


def longest_refusal_s(posts: Sequence[Post]) -> float:
    """Return the longest time from a refused prediction to the next accepted one, or to the last one, in seconds."""
    longest, refused_at = 0.0, None
    for post in sorted(posts, key=lambda post: post.sent_at):
        if refused_at is None and not post.is_accepted:
            refused_at = post.sent_at
        if refused_at is not None:
            longest = max(longest, post.sent_at - refused_at)
        if post.is_accepted:
            refused_at = None
    return longest
