"""Reasons: POST /churn/predict?explain=true."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from api.http.problems import ProblemType
from tests.harness.assertions import assert_problem
from tests.harness.service import Service

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

Customer = dict[str, Any]


def post(service: Service, customer: Customer, explain: str | None = "true", **headers: str) -> requests.Response:
    return service.post(customer, None if explain is None else {"explain": explain}, **headers)


def assert_reasons(body: Customer) -> None:
    reasons = body["reasons"]
    for direction, sign in (("up", 1), ("down", -1)):
        strengths = [sign * reason["log_odds"] for reason in reasons[direction]]
        assert len(strengths) <= 3
        assert strengths == sorted(strengths, reverse=True)
        assert min(strengths, default=1) > 0
    named = sum(reason["log_odds"] for reason in reasons["up"] + reasons["down"])
    log_odds = math.log(body["probability"] / (1 - body["probability"]))
    assert reasons["base"] + named + reasons["others"] == pytest.approx(log_odds, abs=1e-6)


def test_a_polled_prediction_has_reasons(service: Service, customer: Customer) -> None:
    accepted = post(service, customer)
    assert accepted.status_code == 202
    assert_reasons(service.ended(accepted.json()["task_id"]).json())


def test_an_awaited_prediction_has_reasons(service: Service, customer: Customer) -> None:
    response = post(service, customer, Prefer="wait=10")
    assert response.status_code == 200
    assert_reasons(response.json())


def test_explain_changes_no_probability_and_reasons_are_absent_without_it(service: Service, customer: Customer) -> None:
    explained, plain, refused = (
        post(service, customer, explain, Prefer="wait=10").json() for explain in ("true", None, "false")
    )
    assert explained["probability"] == plain["probability"] == refused["probability"]
    assert "reasons" in explained
    assert not {"reasons"} & (set(plain) | set(refused))


def test_each_prediction_of_a_message_has_reasons_only_if_it_asked_for_them(
    service: Service, customer: Customer
) -> None:
    wanted = ["true", None] * 20
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(lambda explain: post(service, customer, explain, Prefer="wait=10").json(), wanted))
    assert ["reasons" in answer for answer in answers] == [explain == "true" for explain in wanted]


def test_explain_belongs_to_the_body_of_an_idempotency_key(
    service: Service, customer: Customer, tmp_path: Path
) -> None:
    key = {"Idempotency_Key": str(tmp_path)}
    first, second = (post(service, customer, **key) for _ in range(2))
    assert first.json()["task_id"] == second.json()["task_id"]
    assert_reasons(service.ended(first.json()["task_id"]).json())
    assert_problem(post(service, customer, None, **key), ProblemType.IDEMPOTENCY_KEY_REUSED)
