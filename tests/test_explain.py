"""Reasons: `POST /churn/predict?explain=true`, in every way that a prediction can be asked for."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.processes import Servers, Service, until
from tests.test_app import problem

Customer = dict[str, Any]


def post(service: Service, customer: Customer, explain: str | None = "true", **headers: str) -> requests.Response:
    query = {} if explain is None else {"explain": explain}
    return requests.post(f"{service.url}/churn/predict", json=customer, params=query, headers=headers, timeout=30)


def check_reasons(body: Customer) -> None:
    reasons = body["reasons"]
    for direction, sign in (("up", 1), ("down", -1)):
        strengths = [sign * reason["log_odds"] for reason in reasons[direction]]
        assert len(strengths) <= 3
        assert strengths == sorted(strengths, reverse=True)
        assert min(strengths, default=1) > 0
    pushed = sum(reason["log_odds"] for reason in reasons["up"] + reasons["down"])
    log_odds = math.log(body["probability"] / (1 - body["probability"]))
    assert reasons["base"] + pushed + reasons["others"] == pytest.approx(log_odds, abs=1e-6)


def test_reasons_come_when_they_are_polled_for(service: Service, customer: Customer) -> None:
    accepted = post(service, customer)
    assert accepted.status_code == 202
    check_reasons(service.ended(accepted.json()["task_id"]).json())


def test_reasons_come_to_who_waits(service: Service, customer: Customer) -> None:
    answer = post(service, customer, Prefer="wait=10")
    assert answer.status_code == 200
    check_reasons(answer.json())


def test_an_explained_probability_is_the_same_and_without_explain_there_are_no_reasons(
    service: Service, customer: Customer
) -> None:
    explained, plain, refused = (
        post(service, customer, explain, Prefer="wait=10").json() for explain in ("true", None, "false")
    )
    assert explained["probability"] == plain["probability"] == refused["probability"]
    assert "reasons" in explained
    assert not {"reasons"} & (set(plain) | set(refused))


def test_of_customers_in_one_message_those_get_reasons_who_want_them(service: Service, customer: Customer) -> None:
    wanted = ["true", None] * 20
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(lambda explain: post(service, customer, explain, Prefer="wait=10").json(), wanted))
    assert ["reasons" in answer for answer in answers] == [explain == "true" for explain in wanted]


def test_a_key_stands_for_a_prediction_with_its_reasons(service: Service, customer: Customer, tmp_path: Path) -> None:
    key = {"Idempotency-Key": str(tmp_path)}
    first, second = (post(service, customer, **key) for _ in range(2))
    assert first.json()["task_id"] == second.json()["task_id"]
    check_reasons(service.ended(first.json()["task_id"]).json())
    problem(post(service, customer, None, **key), "idempotency-key-reused")


@pytest.mark.parametrize("explain", ["maybe", "", "1"])
def test_explain_is_true_or_false(service: Service, customer: Customer, explain: str) -> None:
    body = problem(post(service, customer, explain), "invalid-features")
    assert [fault["pointer"] for fault in body["errors"]] == ["#/explain"]


def test_a_model_that_gives_no_reasons_says_so(servers: Servers, tmp_path: Path, customer: Customer) -> None:
    alone = Service(servers, tmp_path, {"MODEL_PATH": str(tmp_path / "mine.joblib")})
    alone.api.start()
    try:
        until(lambda: alone.answers("/livez"))
        problem(post(alone, customer), "not-explainable")
        (tmp_path / "mine.json").write_text('{"name": "mine", "explains": false}')
        problem(post(alone, customer), "not-explainable")
    finally:
        alone.stop()
