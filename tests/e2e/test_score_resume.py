"""Kind of fault: Ctrl-C or a lost connection loses the batch of `score`.

No other worker may run: it would end the batch.
"""

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_score import COMMAND, rows_of, score
from tests.harness import marked_model
from tests.harness.customers import as_csv
from tests.harness.processes import ROOT, until
from tests.harness.proxy import Proxy, proxy
from tests.harness.servers import Servers
from tests.harness.service import Service

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "customers.csv"


@pytest.fixture
def unworked(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Service]:
    """A service whose worker is not started yet; the parameter is the most rows of a batch."""
    model = str(marked_model.save(tmp_path))
    settings = {"MODEL_PATH": model, "BATCH_MAX_ROWS": getattr(request, "param", "200000")}
    service = Service(servers, tmp_path, settings)
    service.api.start()
    service.await_answer("/livez", service.api)
    yield service
    service.stop()


@contextlib.contextmanager
def waiting_command(between: Proxy, path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start the command on a proxy of the API; yield it once it asks for the progress of its batch."""
    words = [*COMMAND, "--url", f"http://127.0.0.1:{between.port}", str(path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: between.is_forwarding(b"GET /churn/batches/"))
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("unworked", ["200000", "100"], indirect=True, ids=["one_batch", "several_batches"])
def test_ctrl_c_prints_how_to_resume_and_the_batch_goes_on(
    unworked: Service, customer: dict[str, Any], path: Path
) -> None:
    path.write_text(as_csv([{**customer, "Gender": "X"}, *[customer] * 150, *[{**customer, "Gender": "X"}] * 2]))
    with proxy(unworked.port) as between, waiting_command(between, path) as process:
        process.send_signal(signal.SIGINT)
        output, message = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert message.startswith("\nStopped.\n")
    (batch_id,) = re.findall(r"--resume (\S+)", message)
    (batch_path,) = re.findall(rf"curl -X DELETE http://127.0.0.1:{between.port}(\S+)", message)

    unworked.worker.start()
    resumed = score(unworked, "--resume", batch_id, path)
    shorter = score(unworked, "--resume", batch_id, "-", text=as_csv([customer] * 100))
    longer = score(unworked, "--resume", batch_id, "-", text=as_csv([customer] * 200))

    assert [row["churn_probability"] for row in rows_of(resumed.stdout)] == ["", *["0.042"] * 150, "", ""]
    assert {row["churn_error"] for row in rows_of(resumed.stdout)} == {"", "Gender: Input should be 'F' or 'M'"}
    for run in (shorter, longer):
        assert (run.returncode, run.stdout) == (1, "")
        assert "was made from another file" in run.stderr
    assert unworked.delete_batch(unworked.url + batch_path).status_code == 204
    gone = score(unworked, "--resume", batch_id, path)
    assert (gone.returncode, gone.stdout) == (1, "")


def test_a_restart_of_the_api_does_not_end_the_command(unworked: Service, customer: dict[str, Any], path: Path) -> None:
    path.write_text(as_csv([customer] * 50))
    with proxy(unworked.port) as between, waiting_command(between, path) as process:
        accepted = between.accepted
        unworked.api.stop()
        until(lambda: between.accepted > accepted)  # at least one request of the command is lost
        unworked.api.start()
        unworked.worker.start()
        output, message = process.communicate(timeout=60)
    assert process.returncode == 0, message
    assert [row["churn_probability"] for row in rows_of(output)] == ["0.042"] * 50
