"""Two cells behind one address with deploy/cells.cfg: the Location of a 202 leads to the cell of the prediction."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import skip
from tests.harness.processes import ROOT, Process, free_port, until
from tests.harness.servers import running_servers
from tests.harness.service import Client, Service, running_service

Cells = tuple[Client, dict[str, Service]]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    """The client of the address, and the cells by the begin of their paths."""
    if not shutil.which("haproxy"):
        skip("not installed: haproxy")
    folder = tmp_path_factory.mktemp("cells")
    with contextlib.ExitStack() as stack:
        services = {}
        for name in ("cell1", "cell2"):
            (folder / name).mkdir()
            servers = stack.enter_context(running_servers("valkey", folder / name))
            services[name] = stack.enter_context(running_service(servers, folder / name, UVICORN_ROOT_PATH=f"/{name}"))
        port = free_port()
        env = {name.upper(): f"127.0.0.1:{service.port}" for name, service in services.items()}
        command = ["haproxy", "-db", "-f", str(ROOT / "deploy/cells.cfg")]
        proxy = Process(command, folder / "proxy.log", {"ADDRESS": f"127.0.0.1:{port}", **env})
        proxy.start()
        stack.callback(proxy.kill)
        client = Client(f"http://127.0.0.1:{port}")
        until(client.answers)
        yield client, services


def test_both_cells_get_predictions_and_each_result_is_found_by_its_location(
    cells: Cells, customer: dict[str, Any]
) -> None:
    client, services = cells
    used = set()
    for _ in range(6):
        location = client.post(customer).headers["location"]
        used.add(location.split("/")[1])
        result = client.get(location, Prefer="wait=20")
        assert (result.status_code, result.json()["status"]) == (200, "Success")
    assert used == services.keys()


def test_another_cell_does_not_know_the_id(cells: Cells, customer: dict[str, Any]) -> None:
    client, services = cells
    location = client.post(customer).headers["location"]
    (other,) = services.keys() - {location.split("/")[1]}
    assert client.get(f"/{other}/churn/result/{location.rpartition('/')[2]}").status_code == 404


def test_the_results_of_a_batch_are_found_by_its_location(cells: Cells, customer: dict[str, Any]) -> None:
    client, _ = cells
    url = client.url + client.request("POST", "/churn/batches", json=[customer] * 3).headers["location"]
    assert len(client.batch_rows(until(lambda: url if client.batch(url).status_code == 200 else ""))) == 3


def test_a_cell_without_its_broker_gets_no_new_predictions(cells: Cells, customer: dict[str, Any]) -> None:
    client, services = cells

    def used() -> set[str]:
        locations = [client.post(customer).headers.get("location", "/refused/") for _ in range(4)]
        return {location.split("/")[1] for location in locations}

    with services["cell1"].servers.broker.paused():
        until(lambda: used() == {"cell2"}, within_s=60)
    until(lambda: used() == {"cell1", "cell2"})
