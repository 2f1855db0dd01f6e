"""GET /churn/model, reasons and readiness follow the models that the workers report, not a file of the API."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from api.http.problems import ProblemType
from celery_task_app.ml.artifact import Artifact
from celery_task_app.store.connection import connect
from celery_task_app.store.model_cards import publish_model_card
from celery_task_app.store.worker_status import WorkerStatus, publish_status, withdraw_status
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Client
from tests.integration.in_process import serving, settings_of

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture(scope="module")
def api(servers: Servers) -> Iterator[Client]:
    with serving(settings_of(servers)) as client:
        yield client


@contextlib.contextmanager
def worker(servers: Servers, name: str, version: str, *, explains: bool = False, **manifest: Any) -> Iterator[None]:
    """Report a worker with a model, as a worker does."""
    artifact = Artifact("mine", version, f"{version:0>64}", {}, explains=explains, manifest=manifest)
    status = WorkerStatus(
        model="loaded",
        detail=version,
        queues=["churn", "churn.batch"],
        sha256=artifact.sha256,
        explains=explains,
    )
    with connect(servers.backend_uri) as client:
        publish_model_card(client, artifact.card)
        publish_status(client, name, status, 60)
        yield
        withdraw_status(client, name)


def test_without_a_worker_no_model_is_described(api: Client) -> None:
    assert_problem(api.get("/churn/model"), ProblemType.NO_MODEL)


def test_several_versions_are_shown_with_the_number_of_their_workers(api: Client, servers: Servers) -> None:
    few: dict[str, Any] = {"limits": ["few customers"]}
    with worker(servers, "a", "2"), worker(servers, "b", "1", **few), worker(servers, "c", "1", **few):
        card = api.get("/churn/model").json()
    assert (card["name"], card["version"], card["sha256"], card["limits"]) == (
        "mine",
        "1",
        f"{1:0>64}",
        ["few customers"],
    )
    assert [(model["version"], model["workers"]) for model in card["in_use"]] == [("1", 2), ("2", 1)]


def test_a_member_of_another_form_is_left_out(api: Client, servers: Servers) -> None:
    features = [{"name": "age", "type": "an unknown type"}]
    with worker(servers, "a", "7", limits="few customers", created="2026-11-26", features=features):
        card = api.get("/churn/model").json()
    assert (card["created"], card["features"]) == ("2026-11-26", [])
    assert "limits" not in card


def test_a_worker_that_reports_no_card_is_passed_over(api: Client, servers: Servers, client: redis.Redis) -> None:
    with worker(servers, "a", "1"), worker(servers, "b", "2"):
        client.delete(f"churn:model:{2:0>64}:2")
        card = api.get("/churn/model").json()
    assert card["version"] == "1"
    assert [model["version"] for model in card["in_use"]] == ["2", "1"]


def test_two_manifests_of_one_file_have_a_card_each(api: Client, servers: Servers) -> None:
    with worker(servers, "a", "2", limits=["ours"]), connect(servers.backend_uri) as client:
        other = {"name": "mine", "version": "3", "sha256": f"{2:0>64}", "features": [], "limits": ["another one's"]}
        publish_model_card(client, other)
        assert api.get("/churn/model").json()["limits"] == ["ours"]


def test_a_changed_manifest_replaces_the_card(api: Client, servers: Servers, client: redis.Redis) -> None:
    with worker(servers, "a", "5", created="2026-11-25"):
        client.expire(f"churn:model:{5:0>64}:5", 10)
    with worker(servers, "a", "5", created="2026-11-26"):
        assert api.get("/churn/model").json()["created"] == "2026-11-26"
        assert 10 < int(client.ttl(f"churn:model:{5:0>64}:5")) <= 60


@pytest.mark.parametrize("explains", [[False], [False, False]])
def test_reasons_of_models_that_give_none_are_422(
    api: Client, servers: Servers, customer: dict[str, Any], explains: list[bool]
) -> None:
    with contextlib.ExitStack() as workers:
        for number, explains_now in enumerate(explains):
            workers.enter_context(worker(servers, f"{number}", f"{number}", explains=explains_now))
        assert_problem(api.post(customer, {"explain": "true"}), ProblemType.NOT_EXPLAINABLE)


def test_reasons_are_accepted_if_a_model_gives_them_or_no_worker_is_there(
    api: Client, servers: Servers, customer: dict[str, Any]
) -> None:
    assert api.post(customer, {"explain": "true"}).status_code == 202
    with worker(servers, "a", "1"), worker(servers, "b", "2", explains=True):
        assert api.post(customer, {"explain": "true"}).status_code == 202


def test_a_worker_whose_model_does_not_fit_this_api_is_unfit_and_named(api: Client, servers: Servers) -> None:
    with worker(servers, "a", "1", features=[{"name": "Shoe_Size", "type": "number"}]):
        until(lambda: "a" in api.readiness()["workers"])
        readiness = api.readiness()
        until(lambda: api.get("/churn/queue").json()["workers"] == {"unfit": 1})
    assert readiness["status"] != "ready"
    assert readiness["workers"]["a"]["model"] == "unfit"
    assert "Shoe_Size" in readiness["workers"]["a"]["detail"]
