"""No batch holds the API up: memory, disk and time of the intake are bounded; a full disk is not a client's fault."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.http.problems import ProblemType
from tests.harness.assertions import assert_problem
from tests.harness.customers import as_csv
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_api(servers, tmp_path_factory.mktemp("limits")) as api:
        yield api


def peak_bytes(service: Service) -> int:
    """Return the most memory that the API has had."""
    status = Path(f"/proc/{service.api.pid}/status")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


HOSTILE = {
    "a header of millions of columns": lambda: b",".join(b"c%d" % number for number in range(2_000_000)),
    "a header over many lines": lambda: b",".join(b'"c%d\n"' % number for number in range(1_500_000)),
    "an unclosed quote": lambda: b'Gender,"' + b"x\n" * 16_000_000,
    "one line": lambda: b"x" * 33_000_000,
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_costs_little_memory(service: Service, body: Any) -> None:
    before = peak_bytes(service)
    assert_problem(service.post_batch(body()), ProblemType.MALFORMED_BATCH)
    assert peak_bytes(service) - before < 50 * MEBIBYTE


def test_a_full_disk_is_503_with_the_folder_in_the_log(service: Service, customer: dict[str, Any]) -> None:
    body, process = as_csv([customer] * 5_000), psutil.Process(service.api.pid)
    unlimited = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (MEBIBYTE // 4, unlimited[1]))
    for _ in range(10):  # more than the places
        response = service.post_batch(body)
        assert_problem(response, ProblemType.NO_SPACE)
        assert int(response.headers["retry-after"]) >= 1
    assert "no temporary file folder=/" in service.api.text()
    process.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    assert service.post_batch(body).status_code == 202


def test_a_stop_ends_the_validation_of_a_long_batch(
    servers: Servers, customer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    limits = {"BATCH_MAX_ROWS": "1000000", "BATCH_MAX_BYTES": "200000000"}
    with running_api(servers, tmp_path_factory.mktemp("stop"), **limits) as api:
        # Each row is validated alone, because every second one is invalid: 12 s of work on a fast machine.
        header, valid, invalid = as_csv([customer, {**customer, "Gender": "?"}]).splitlines(keepends=True)
        body = header + (valid + invalid) * 400_000
        statuses: list[int] = []
        sender = threading.Thread(target=lambda: statuses.append(api.post_batch(body).status_code))
        sender.start()
        process = psutil.Process(api.api.pid)
        before_s = process.cpu_times().user
        until(lambda: process.cpu_times().user > before_s + 0.5)  # it parses or validates
        api.api.signal(signal.SIGTERM)
        assert api.api.wait(within_s=15) == 0
        sender.join()
        assert statuses == [503]
