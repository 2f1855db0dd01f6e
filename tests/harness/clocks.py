"""Processes whose clock is wrong, by libfaketime. The monotonic clock stays right, as on a real host."""

from pathlib import Path

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def clock_env(offset: str) -> dict[str, str]:
    """Return the environment of a process whose clock is off, for example by "-2h"."""
    return {"LD_PRELOAD": f"{LIBFAKETIME}", "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
