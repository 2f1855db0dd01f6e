"""The queueing model of `python -m benchmarks.capacity`: laws that hold in every queue, and KEDA's formula."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.capacity import SCALERS, read_scalers
from benchmarks.capacity_model import (
    GROUP_MAX,
    NAGLE_S,
    PARTS,
    PREFETCH,
    Cost,
    Parameters,
    Scaled,
    Scaler,
    Service,
    Stack,
    closed,
    desired_replicas,
    fit,
    fit_crowd,
    opened,
)
from celery_task_app.settings import Settings
from celery_task_app.worker import app
from tests.harness.processes import ROOT

PARAMETERS = Parameters(dict.fromkeys(PARTS, Cost(0.4, 0.02)), Cost(0.05, 0.005), delay_s=0.0003, spread=0.3)
OWN_CORES = Stack(apis=2, workers=2)
API = Scaler(2, 10, [0.7], 300, 60, 15)
WORKERS = Scaler(2, 10, [1_000, 2_000], 300, 60, 10)


def bound_by(part: str, ms: float) -> Parameters:
    """Return parameters with one slow part, by cost of a customer."""
    return replace(PARAMETERS, costs={**PARAMETERS.costs, part: Cost(0.4, ms)})


def scaled(rate: float, seconds: float = 600, high_water: float = 10_000, workers: Scaler = WORKERS) -> Scaled:
    running = Scaled(
        API, workers, rate_of_api=5_000, rate_of_worker=3_000, high_water=high_water, arrivals=lambda _now: rate
    )
    running.run(seconds)
    return running


def test_two_measurements_give_the_cost_of_a_message_and_of_a_customer() -> None:
    cost = fit((1, 0.5), (50, 0.108))
    assert (cost.message_ms, cost.customer_ms) == pytest.approx((0.4, 0.1))
    assert cost.of_prediction_ms(10) == pytest.approx(0.14)
    assert cost.seconds(10) == pytest.approx(0.0014)


def test_three_measurements_give_the_growth_with_open_requests() -> None:
    points = [(size, opened, 0.4 / size + 0.1 + 0.001 * opened) for size, opened in ((1, 1), (30, 64), (150, 512))]
    cost, crowd_ms = fit_crowd(points)
    assert (cost.message_ms, cost.customer_ms, crowd_ms) == pytest.approx((0.4, 0.1, 0.001))


def test_noise_gives_no_negative_cost() -> None:
    assert fit((1, 0.1), (50, 0.2)) == Cost(0, 0.2)


@pytest.mark.parametrize("clients", [1, 30])
def test_littles_law_holds(clients: int) -> None:
    outcome = closed(PARAMETERS, Stack(shared_cores=2), clients)
    assert outcome.predictions_per_s * outcome.mean_s == pytest.approx(clients, rel=0.05)
    assert outcome.in_system == pytest.approx(clients, rel=0.05)


def test_utilisation_is_throughput_times_cost() -> None:
    outcome = opened(replace(PARAMETERS, spread=0), OWN_CORES, 2_000)
    cost_ms = PARAMETERS.costs["pool"].of_prediction_ms(outcome.message_customers)
    assert 2 * outcome.busy["pool"] == pytest.approx(outcome.predictions_per_s * cost_ms / 1000, rel=0.05)


def test_arrivals_below_the_capacity_all_get_a_result() -> None:
    assert opened(PARAMETERS, OWN_CORES, 2_000).predictions_per_s == pytest.approx(2_000, rel=0.05)


def test_a_part_works_all_of_its_time_at_most() -> None:
    busy = opened(bound_by("pool", 1), Stack(), 2_000).busy
    assert busy["pool"] == max(busy.values()) == pytest.approx(1, abs=0.05)


def test_a_second_worker_doubles_the_throughput_of_a_stack_that_workers_limit() -> None:
    slow = bound_by("pool", 1)
    one, two = (closed(slow, Stack(4, workers), 200).predictions_per_s for workers in (1, 2))
    assert two / one == pytest.approx(2, rel=0.1)


def test_a_second_worker_changes_nothing_if_a_shared_core_is_busy() -> None:
    slow = bound_by("pool", 1)
    alone, two = (
        closed(slow, Stack(1, workers, shared_cores=1), 200, seconds=3).predictions_per_s for workers in (1, 2)
    )
    assert two / alone == pytest.approx(1, rel=0.1)


def test_messages_grow_with_the_load_up_to_their_limit() -> None:
    sizes = [closed(PARAMETERS, Stack(shared_cores=2), clients).message_customers for clients in (1, 16, 128, 1_024)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1] <= GROUP_MAX) == (1, True)


def test_the_first_message_waits_for_no_other_one() -> None:
    service = Service(replace(PARAMETERS, spread=0), Stack())
    customer = service.submit(0)
    service.env.run(until=customer.ended)
    assert service.env.now < NAGLE_S


def test_completions_cost_other_api_processes() -> None:
    busy = [opened(replace(PARAMETERS, foreign=Cost(0, ms)), Stack(4, 2), 2_000).busy["API"] for ms in (0, 0.1)]
    assert busy[1] - busy[0] == pytest.approx(2_000 * 0.1 / 1000 * 3 / 4, rel=0.1)


def test_the_constants_are_those_of_the_service() -> None:
    assert Settings.model_fields["group_max"].default == GROUP_MAX
    assert app.conf.worker_prefetch_multiplier == PREFETCH
    assert f"max_delay_s: float = {NAGLE_S}," in (ROOT / "api/group_commit.py").read_text()


@pytest.mark.parametrize(
    ("values", "replicas", "expected"),
    [
        ([0, 0], 2, 0),
        ([2_050, 0], 2, 2),  # within the tolerance of a tenth
        ([2_500, 0], 2, 3),
        ([2_500, 9_000], 2, 5),  # the largest trigger wins
        ([100, 2_000], 4, 1),
    ],
)
def test_the_desired_number_is_that_of_the_horizontal_pod_autoscaler(
    values: list[float], replicas: int, expected: int
) -> None:
    wanted = desired_replicas(values, [1_000, 2_000], replicas)
    # kubernetes.io: ceil(replicas * (value of a pod / threshold)), for each metric
    ratios = [value / replicas / threshold for value, threshold in zip(values, (1_000, 2_000), strict=True)]
    by_metric = [replicas if abs(ratio - 1) <= 0.1 else math.ceil(replicas * ratio - 1e-9) for ratio in ratios]
    assert wanted == max(by_metric) == expected


def test_a_steady_load_gets_the_workers_of_its_threshold() -> None:
    wave = scaled(7_900).wave
    assert (wave.workers[0], wave.workers[-1]) == (2, 4)
    assert wave.refused_share < 0.1


def test_the_queue_is_bounded_by_the_high_water_mark_and_the_arrivals_of_a_second() -> None:
    wave = scaled(9_000, high_water=2_000, workers=replace(WORKERS, most=2)).wave
    assert 2_000 < max(wave.waiting) <= 2_000 + 9_000
    assert 0 < wave.refused_share < 1


def test_workers_without_need_end_one_a_minute_after_five_minutes() -> None:
    workers = Scaled(
        API,
        WORKERS,
        rate_of_api=5_000,
        rate_of_worker=5_000,
        high_water=10_000,
        arrivals=lambda now: 9_000 if now < 120 else 1_000,
    ).run(1_200)
    counts = workers.workers
    removed_at = [round(number * workers.step_s) for number, (one, two) in enumerate(pairwise(counts)) if two < one]
    assert (max(counts), counts[-1], len(removed_at)) == (5, WORKERS.least, 3)
    assert removed_at[0] >= 120 + WORKERS.down_after_s
    assert all(later - earlier >= WORKERS.down_every_s for earlier, later in pairwise(removed_at))


def test_accepted_customers_wait_for_the_workers() -> None:
    wave = scaled(3_000, seconds=60, workers=replace(WORKERS, least=0, most=1, start_s=5)).wave
    first = wave.workers.index(1) * wave.step_s
    assert wave.waits_s()[0] == pytest.approx(first, abs=1)


def test_the_scalers_are_those_of_the_manifests() -> None:
    scalers = read_scalers(start_s=5)
    assert scalers.keys() == {"churn-api", "churn-worker", "churn-batch-worker"}
    text = SCALERS.read_text()
    for threshold in (*scalers["churn-worker"].thresholds, *scalers["churn-batch-worker"].thresholds):
        assert f'threshold: "{threshold:.0f}"' in text
    assert scalers["churn-api"].thresholds == [0.7]
    assert scalers["churn-batch-worker"].least == 0
