"""Processes whose clock is wrong, by libfaketime. The monotonic clock stays right, as on a real host."""

import os
from pathlib import Path

import pytest

LIBRARIES = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/local/lib"]


def clock_off_by(seconds: int) -> dict[str, str]:
    """Return environment variables for a process whose clock is ahead; skip the test without libfaketime."""
    paths = [path for folder in LIBRARIES if (path := Path(folder, "faketime/libfaketime.so.1")).exists()]
    if not paths:
        reason = "not installed: libfaketime (Debian package of this name)"
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    offset = f"{seconds:+d}s"
    return {"LD_PRELOAD": str(paths[0]), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
