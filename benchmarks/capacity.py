"""How many pods a load needs: measures, checks a queueing model, and answers: `python -m benchmarks.capacity`.

The model (`capacity_model.py`) gets its parameters from three measured loads, and predicts all other loads of the same
run. Then it simulates stacks whose parts have cores of their own, which this machine does not have. `--from FILE` uses
the measurements of an earlier run.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import stand
from benchmarks.capacity_measure import (
    BATCH_ROWS,
    Limit,
    Load,
    measure_batches,
    measure_foreign,
    measure_limits,
    measure_loads,
    measure_start,
)
from benchmarks.capacity_model import (
    PARTS,
    Cost,
    Outcome,
    Parameters,
    Scaled,
    Scaler,
    Stack,
    Wave,
    closed,
    fit,
    fit_crowd,
    opened,
)
from celery_task_app.settings import Settings
from tests.harness.processes import ROOT

STACKS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4))
"""API processes and workers of each measured stack."""

FEW, MANY, MOST = CALIBRATION = 1, 64, 512
"""Clients of the loads that give the parameters; with one API process and one worker."""

CLOSE = 0.2
"""A prediction of the model is close if it is within 20 % of the measurement."""

BUSY = 0.7
"""Share of a core that a sized stack uses of each thread; the API's scaler has the same target."""

RATES = (1_000, 10_000, 100_000, 1_000_000)
CELL_RATES = (500, 1_000, 2_000, 5_000, 10_000, 15_000, 20_000)
USUAL = 2_000  # customers a second before and after a burst
BURST_AT_S, BURST_S = 300, 60
METRICS_SERVER_S = 15  # its default resolution
SCALERS = ROOT / "deploy/kubernetes/overlays/production/scaling.yaml"


@dataclass(frozen=True)
class Measured:
    """All measurements of one run; the docstrings of capacity_measure.py explain them."""

    machine: str
    cores: int
    servers: str
    loads: list[Load]
    foreign: Cost
    limits: list[Limit]
    subscriber_ms: float
    batch_cpu_ms: dict[str, float]
    start_s: float

    def load(self, apis: int, workers: int, clients: int) -> Load:
        """Return a measured load."""
        return next(one for one in self.loads if (one.apis, one.workers, one.clients) == (apis, workers, clients))


def measure(
    servers: str, clients: Sequence[int], stacks: Sequence[tuple[int, int]], rounds: int, seconds: float
) -> Measured:
    """Measure everything."""
    loads = measure_loads(servers, [(1, 1)], sorted({*CALIBRATION, *clients}), rounds, seconds)
    loads += measure_loads(servers, [one for one in stacks if one != (1, 1)], clients, rounds, seconds)
    limits, subscriber_ms = measure_limits(servers, seconds)
    return Measured(
        stand.describe_machine(),
        psutil.cpu_count() or 1,
        stand.SERVERS[servers],
        loads,
        measure_foreign(servers, FEW, MANY, seconds),
        limits,
        subscriber_ms,
        measure_batches(servers, BATCH_ROWS),
        measure_start(servers),
    )


def read(path: Path) -> Measured:
    """Read the measurements of an earlier run."""
    values: dict[str, Any] = json.loads(path.read_text())["measured"]
    values["loads"] = [Load(**one) for one in values["loads"]]
    values["limits"] = [Limit(**one) for one in values["limits"]]
    values["foreign"] = Cost(**values["foreign"])
    return Measured(**values)


def calibrate(measured: Measured, seconds: float) -> Parameters:
    """Return the parameters of the model, from the loads CALIBRATION of one API process and one worker."""
    few, many = measured.load(1, 1, FEW), measured.load(1, 1, MANY)
    sizes = few.message_customers, many.message_customers
    costs = {part: fit((sizes[0], few.cpu_ms[part]), (sizes[1], many.cpu_ms[part])) for part in PARTS}
    loads = [measured.load(1, 1, clients) for clients in CALIBRATION]
    costs["loop"], crowd_ms = fit_crowd([(one.message_customers, one.clients, one.cpu_ms["loop"]) for one in loads])
    parameters = Parameters(costs, measured.foreign, crowd_ms=crowd_ms)
    stack = Stack(shared_cores=measured.cores)
    missing_ms = few.p50_ms - closed(parameters, stack, FEW, seconds).p50_ms
    parameters = replace(parameters, delay_s=max(0.0, missing_ms) / 1000)
    spreads = [number / 20 for number in range(21)]

    def error(spread: float) -> float:
        outcome = closed(replace(parameters, spread=spread), stack, FEW, seconds)
        return abs(math.log(outcome.p99_ms / outcome.p50_ms * few.p50_ms / few.p99_ms))

    return replace(parameters, spread=min(spreads, key=error))


@dataclass(frozen=True)
class Checked:
    """One measured load beside the prediction of the model."""

    load: Load
    outcome: Outcome

    @property
    def is_calibration(self) -> bool:
        """Whether the parameters come from this load."""
        return (self.load.apis, self.load.workers) == (1, 1) and self.load.clients in CALIBRATION

    @property
    def ratios(self) -> tuple[float, ...]:
        """Predicted divided by measured: throughput, p50, p99."""
        names = ("predictions_per_s", "p50_ms", "p99_ms")
        return tuple(getattr(self.outcome, name) / getattr(self.load, name) for name in names)


def check(measured: Measured, parameters: Parameters, seconds: float) -> list[Checked]:
    """Simulate each measured load for as long as it was measured."""
    return [
        Checked(one, closed(parameters, Stack(one.apis, one.workers, measured.cores), one.clients, seconds))
        for one in measured.loads
    ]


def is_close(ratio: float) -> bool:
    """Tell whether a prediction is within 20 % of its measurement."""
    return abs(ratio - 1) <= CLOSE


def header(*names: str) -> list[str]:
    """Return the first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def format_check(checked: Sequence[Checked]) -> str:
    """Return the table of predictions and measurements; a ratio in bold is not close."""
    names = (
        "predictions/s, model",
        "ratio",
        "p50, model",
        "ratio",
        "p99, model",
        "ratio",
        "customers in a message, model",
    )
    lines = header("API processes", "workers", "clients", *names)
    for one in checked:
        load, outcome = one.load, one.outcome
        ratios = [f"{ratio:.2f}" if is_close(ratio) else f"**{ratio:.2f}**" for ratio in one.ratios]
        cells = [
            f"{load.apis}",
            f"{load.workers}",
            f"{load.clients}{' (calibration)' if one.is_calibration else ''}",
            f"{load.predictions_per_s:,.0f}, {outcome.predictions_per_s:,.0f}",
            ratios[0],
            f"{load.p50_ms:.1f}, {outcome.p50_ms:.1f} ms",
            ratios[1],
            f"{load.p99_ms:.1f}, {outcome.p99_ms:.1f} ms",
            ratios[2],
            f"{load.message_customers:.1f}, {outcome.message_customers:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    others = [one for one in checked if not one.is_calibration]
    for number, name in enumerate(("throughput", "p50", "p99")):
        close = sum(is_close(one.ratios[number]) for one in others)
        lines.append(f"{'' if number else chr(10)}{name}: {close} of {len(others)} within 20 %  ")
    return "\n".join(lines)


# A cluster: each pod has cores of its own


def of_cluster(measured: Measured, parameters: Parameters) -> Parameters:
    """Return the parameters of servers under load, as the direct measurements give them."""

    def cost(server: str) -> Cost | None:
        points = [(one.customers, one.cpu_ms / one.customers) for one in measured.limits if one.server == server]
        return fit(points[0], points[-1]) if points else None

    servers = {"broker": cost("leader") or cost("broker"), "store": cost("store")}
    return replace(parameters, costs={**parameters.costs, **{name: one for name, one in servers.items() if one}})


@dataclass(frozen=True)
class Size:
    """A stack that carries a rate with each thread at most 70 % busy.

    Attributes:
        rate: customers a second.
        apis: API pods.
        workers: worker pods.
        outcome: of the simulation.
        cores: busy cores of all parts without the clients.
    """

    rate: float
    apis: int
    workers: int
    outcome: Outcome
    cores: float

    @property
    def fits(self) -> bool:
        """Whether the servers carry it too; more pods would not help them."""
        return max(self.outcome.busy["store"], self.outcome.busy["broker"]) <= BUSY

    @property
    def core_hours(self) -> float:
        """Busy core-hours of a million predictions."""
        return self.cores * 1e6 / self.rate / 3600

    @property
    def pod_cores(self) -> int:
        """Cores that the pods request: one for each pod, one for each node of the broker, one for the store."""
        return self.apis + self.workers + 3 + 1


def followers(measured: Measured, size: Size) -> float:
    """Return the busy cores of both followers of the broker's leader for a stack."""
    points = [(one.customers, one.cpu_ms / one.customers) for one in measured.limits if one.server == "both followers"]
    if not points:
        return 0
    return size.rate / 1000 * fit(points[0], points[-1]).of_prediction_ms(size.outcome.message_customers)


def size_stack(parameters: Parameters, rate: float) -> Size | None:
    """Return the smallest stack for a rate; None if its API processes read completions only."""
    apis, workers = max(2, math.ceil(rate / 6_000)), 2
    for _ in range(12):
        stack = Stack(apis, workers)
        outcome = opened(parameters, stack, rate, seconds=min(2, 20_000 / rate), warm_up_s=min(0.5, 5_000 / rate))
        busiest_worker = max(outcome.busy["pool"], outcome.busy["consumer"])
        if outcome.busy["API"] <= BUSY and busiest_worker <= BUSY:
            break
        if outcome.busy["API"] > BUSY:
            apis = max(apis + 1, math.ceil(apis * outcome.busy["API"] / BUSY))
        if busiest_worker > BUSY:
            workers = max(workers + 1, math.ceil(workers * busiest_worker / BUSY))
    else:
        return None
    threads = {"API": apis, "broker": stack.broker_threads, "store": 1, "consumer": workers, "pool": workers}
    return Size(rate, apis, workers, outcome, sum(outcome.busy[part] * count for part, count in threads.items()))


def largest(sizes: Sequence[Size]) -> Size:
    """Return the stack with the highest rate whose servers carry it: a cell."""
    return max((one for one in sizes if one.fits), key=lambda one: one.rate)


def format_sizes(sizes: Sequence[Size], price: float | None) -> str:
    """Return the table of stacks and cells for each rate."""
    cell = largest(sizes)
    names = ["predictions/s", "cells", "API pods", "workers", "nodes of RabbitMQ", "Redis", "busy cores"]
    names += ["core-hours per million, busy and requested", "p50, p99", *(["price per million"] if price else [])]
    lines = header(*names)
    by_rate = {one.rate: one for one in sizes}
    for rate in RATES:
        one = by_rate[rate] if rate in by_rate and by_rate[rate].fits else cell
        cells = math.ceil(rate / one.rate)
        requested = cells * one.pod_cores * 1e6 / rate / 3600
        row = [
            f"{rate:,}",
            f"{cells} of {one.rate:,.0f}/s",
            f"{cells * one.apis}",
            f"{cells * one.workers}",
            f"{cells * 3}",
            f"{cells}",
            f"{cells * one.cores:.1f}",
            f"{one.core_hours:.2f}, {requested:.2f}",
            f"{one.outcome.p50_ms:.1f}, {one.outcome.p99_ms:.1f} ms",
        ]
        row += [f"{requested * price:.4f}"] if price else []
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def format_stack(sizes: Sequence[Size], parameters: Parameters) -> str:
    """Return the table of one stack by rate: the busy share of each part."""
    names = "predictions/s", "API pods", "workers", "customers in a message", "API", "of it, completions of others"
    lines = header(*names, "pool", "consumer", "store", "broker", "p50, p99")
    for one in sizes:
        busy, size = one.outcome.busy, one.outcome.message_customers
        foreign = one.rate / size * parameters.foreign.seconds(size) * (one.apis - 1) / one.apis
        shares = [busy["API"], foreign, busy["pool"], busy["consumer"], busy["store"], busy["broker"]]
        cells = [f"{one.rate:,.0f}", f"{one.apis}", f"{one.workers}", f"{size:.1f}"]
        cells += [f"{100 * share:.0f} %" for share in shares]
        cells.append(f"{one.outcome.p50_ms:.1f}, {one.outcome.p99_ms:.1f} ms")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_limits(limits: Sequence[Limit]) -> str:
    """Return the table of servers that were driven directly."""
    names = "server", "customers in a message", "messages/s here", "cores of the server", "CPU µs of a message"
    lines = header(*names, "with a core of its own: messages/s, predictions/s")
    for one in sorted(limits, key=lambda one: (one.server, one.customers)):
        own = 1000 / one.cpu_ms
        lines.append(
            f"| {one.server} | {one.customers} | {one.messages_per_s:,.0f} | {one.cores:.2f} | "
            f"{1000 * one.cpu_ms:,.0f} | {own:,.0f}, {own * one.customers:,.0f} |"
        )
    return "\n".join(lines)


def worker_rate(parameters: Parameters, customers: float) -> float:
    """Return the predictions a second of a worker whose pool process is always busy."""
    costs = parameters.costs
    pool_s = costs["pool"].seconds(customers) + costs["store"].seconds(customers) * 3 / 4
    return customers / max(pool_s, costs["consumer"].seconds(customers))


# KEDA


def read_scalers(start_s: float) -> dict[str, Scaler]:
    """Return the scalers of the manifests by the name of their Deployment."""
    documents = list(yaml.safe_load_all(SCALERS.read_text()))
    documents += yaml.safe_load_all(SCALERS.with_name("monitoring.yaml").read_text())
    (endpoint,) = next(one for one in documents if one["kind"] == "PodMonitor")["spec"]["podMetricsEndpoints"]
    scrape_s = float(endpoint["interval"].removesuffix("s"))
    scalers = {}
    for one in documents:
        spec, name = one["spec"], one["metadata"]["name"]
        if one["kind"] == "ScaledObject":
            counts = spec["minReplicaCount"], spec["maxReplicaCount"]
            thresholds = [float(trigger["metadata"]["threshold"]) for trigger in spec["triggers"]]
            behavior, read_s = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"], scrape_s
        elif one["kind"] == "HorizontalPodAutoscaler":
            counts = spec["minReplicas"], spec["maxReplicas"]
            thresholds = [metric["resource"]["target"]["averageUtilization"] / 100 for metric in spec["metrics"]]
            behavior, read_s = spec["behavior"], METRICS_SERVER_S
        else:
            continue
        down = behavior["scaleDown"]
        up = behavior.get("scaleUp", {"policies": [{"value": 4}]})  # the default of Kubernetes
        scalers[name] = Scaler(
            *counts,
            thresholds,
            down["stabilizationWindowSeconds"],
            down["policies"][0]["periodSeconds"],
            read_s,
            up_pods=max(policy["value"] for policy in up["policies"]),
            start_s=start_s,
        )
    return scalers


def burst(usual: float) -> Callable[[float], float]:
    """Return arrivals of ten times the usual rate, for a minute after five minutes."""
    return lambda now: usual * (10 if BURST_AT_S <= now < BURST_AT_S + BURST_S else 1)


def day(mean: float) -> Callable[[float], float]:
    """Return arrivals that follow a day, from none at night to twice the mean at noon."""
    return lambda now: mean * (1 - math.cos(2 * math.pi * now / 86_400))


def million_rows(rate: float) -> Callable[[float], float]:
    """Return a million rows of batches, at the rate at which one API process validates them."""
    return lambda now: rate if BURST_AT_S <= now < BURST_AT_S + 1e6 / rate else 0


@dataclass(frozen=True)
class Case:
    """A load under the scalers, and its course."""

    name: str
    wave: Wave

    def row(self) -> str:
        """Return a row of the table of cases."""
        wave = self.wave
        pod_hours = (sum(wave.apis) + sum(wave.workers)) * wave.step_s / 3600
        return (
            f"| {self.name} | {min(wave.apis)}, {max(wave.apis)} | {min(wave.workers)}, {max(wave.workers)} | "
            f"{max(wave.waiting):,.0f} | {wave.mean_wait_s:.1f} s; {max(wave.waits_s()):.1f} s | "
            f"{100 * wave.refused_share:.0f} % | {pod_hours:.1f} |"
        )


def run_cases(measured: Measured, cell: Size, rate_of_worker: float, pull_s: float) -> list[Case]:
    """Simulate loads under the scalers of the manifests, and under changed ones."""
    settings = Settings()
    scalers = read_scalers(measured.start_s + pull_s)
    apis, workers, batches = (scalers[name] for name in ("churn-api", "churn-worker", "churn-batch-worker"))
    rate_of_api = cell.rate / cell.apis / cell.outcome.busy["API"]

    def run(
        name: str, arrivals: Callable[[float], float], seconds: float = 1_500, step_s: float = 0.1, **least: int
    ) -> Case:
        pods = [
            replace(scaler, least=least.get(kind, scaler.least), most=max(scaler.most, least.get(kind, 0)))
            for kind, scaler in (("apis", apis), ("workers", workers))
        ]
        scaled = Scaled(
            *pods,
            rate_of_api=rate_of_api,
            rate_of_worker=rate_of_worker,
            high_water=settings.queue_high_water,
            arrivals=arrivals,
            step_s=step_s,
        )
        return Case(name, scaled.run(seconds))

    enough = {
        "apis": math.ceil(10 * USUAL / rate_of_api / BUSY),
        "workers": math.ceil(10 * USUAL / rate_of_worker / BUSY),
    }
    rows_of_worker = 1000 / measured.batch_cpu_ms["pool"]
    rows_of_api = 1000 / (measured.batch_cpu_ms["loop"] + measured.batch_cpu_ms["publisher"])
    batch = Scaled(
        replace(apis, least=1, most=1),
        batches,
        rate_of_api=rows_of_api,
        rate_of_worker=rows_of_worker,
        high_water=settings.batch_high_water,
        arrivals=million_rows(rows_of_api),
    )
    return [
        run(f"{USUAL:,}/s", lambda _now: USUAL),
        run(f"{10 * USUAL:,}/s for {BURST_S} s, the manifests", burst(USUAL)),
        run(f"the same, at least {enough['apis']} API pods", burst(USUAL), apis=enough["apis"]),
        run(f"the same, and {enough['workers']} workers", burst(USUAL), **enough),
        run(f"a day with {2 * USUAL:,}/s at noon", day(USUAL), 86_400, 1),
        Case(f"a million rows; {rows_of_worker:,.0f} a second for a worker", batch.run(1_500)),
    ]


def format_cases(cases: Sequence[Case]) -> str:
    """Return the table of cases."""
    names = ["load", "API pods, least and most", "workers", "most waiting", "wait at the busiest time, mean; most"]
    names += ["refused at the busiest time", "pod-hours"]
    return "\n".join([*header(*names), *(case.row() for case in cases)])


# Plots


def plot(folder: Path, checked: Sequence[Checked], sizes: Sequence[Size], cases: Sequence[Case]) -> None:
    """Draw the three pictures of docs/scaling.md."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - takes a second, and only --out needs it

    picture, axes = plt.subplots(1, 2, figsize=(9, 3.8))
    stacks = list(dict.fromkeys((one.load.apis, one.load.workers) for one in checked))
    for number, stack in enumerate(stacks):
        rows = [one for one in checked if (one.load.apis, one.load.workers) == stack]
        clients = [one.load.clients for one in rows]
        label = f"{stack[0]} API, {stack[1]} worker{'s'[: stack[1] - 1]}"
        for place, name in zip(axes, ("predictions_per_s", "p50_ms"), strict=True):
            place.plot(clients, [getattr(one.load, name) for one in rows], "o", ms=4, color=f"C{number}", label=label)
            place.plot(clients, [getattr(one.outcome, name) for one in rows], "-", lw=1, color=f"C{number}")
    for place, title in zip(axes, ("predictions a second", "median time, ms"), strict=True):
        place.set(xscale="log", yscale="log", xlabel="clients", title=title)
    axes[0].legend(frameon=False, fontsize=7, title="points measured, lines of the model", title_fontsize=7)
    save(picture, folder / "capacity-check.png")

    picture, axes = plt.subplots(1, 2, figsize=(9, 3.8))
    rates = [one.rate for one in sizes]
    for part in ("API", "store", "broker", "pool"):
        axes[0].plot(rates, [100 * one.outcome.busy[part] for one in sizes], "o-", ms=3, label=part)
    axes[0].axhline(100 * BUSY, color="grey", lw=0.8, ls="--")
    axes[0].set(xlabel="predictions a second of one stack", title="busy share of a thread, %", ylim=(0, 100))
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].plot(rates, [one.core_hours for one in sizes], "o-", ms=3, label="busy")
    axes[1].plot(rates, [one.pod_cores * 1e6 / one.rate / 3600 for one in sizes], "o-", ms=3, label="requested by pods")
    axes[1].set(xlabel="predictions a second of one stack", title="core-hours per million predictions", yscale="log")
    axes[1].legend(frameon=False, fontsize=8)
    save(picture, folder / "capacity-stack.png")

    picture, axes = plt.subplots(4, 1, figsize=(9, 7), sharex=True)
    for number, case in enumerate(cases[1:4]):
        wave, shown = case.wave, slice(10 * (BURST_AT_S - 30), 10 * (BURST_AT_S + 240))
        times = [index * wave.step_s - BURST_AT_S for index in range(len(wave.offered))][shown]
        lines: dict[str, Sequence[float]] = {"ended a second": wave.ended, "API pods": wave.apis}
        lines |= {"workers": wave.workers, "wait, s": wave.waits_s()}
        for place, (title, values) in zip(axes, lines.items(), strict=True):
            place.plot(times, values[shown], lw=1, color=f"C{number}", label=case.name)
            place.set_ylabel(title, fontsize=8)
        if not number:
            axes[0].plot(times, wave.offered[shown], color="grey", lw=0.8, ls="--", label="arrived a second")
    axes[0].legend(frameon=False, fontsize=7)
    axes[-1].set_xlabel("seconds from the begin of the burst", fontsize=8)
    save(picture, folder / "capacity-burst.png")


def save(picture: Any, path: Path) -> None:
    """Write a picture."""
    for axes in picture.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(9)
    picture.tight_layout()
    picture.savefig(path, dpi=110)


def answer(measured: Measured, options: argparse.Namespace) -> None:
    """Check the model, answer, and write --out."""
    report: dict[str, object] = {"date": datetime.now(UTC).date().isoformat(), "measured": asdict(measured)}
    if options.out:  # before the simulations, so that no fault there loses the measurements
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    parameters = calibrate(measured, options.seconds)
    print(
        f"{measured.machine}; {measured.servers}\n\nParameters, CPU ms\n\n| part | message | customer |\n|---|---|---|"
    )
    shown: Mapping[str, Cost] = {**parameters.costs, "completion of another API process": parameters.foreign}
    for part, cost in shown.items():
        print(f"| {part} | {cost.message_ms:.3f} | {cost.customer_ms:.4f} |")
    print(f"\n- An open request costs the loop {1000 * parameters.crowd_ms:.2f} µs for each prediction.")
    print(f"- A message takes {1000 * parameters.delay_s:.2f} ms without CPU. ", end="")
    print(f"The spread of the times is {parameters.spread:.2f}.")
    print(f"- A further API process costs the store {1000 * measured.subscriber_ms:.1f} µs a message.")
    print(f"- A worker starts in {measured.start_s:.1f} s.\n\nCheck\n")
    checked = check(measured, parameters, options.seconds)
    print(format_check(checked), f"\n\nServers driven directly\n\n{format_limits(measured.limits)}", flush=True)
    cluster = of_cluster(measured, parameters)
    found = (size_stack(cluster, rate) for rate in options.rates)
    sizes = [replace(one, cores=one.cores + followers(measured, one)) for one in found if one]
    print(f"\nOne stack, each thread at most {100 * BUSY:.0f} % busy\n\n{format_stack(sizes, cluster)}")
    print(f"\nPods\n\n{format_sizes(sizes, options.price_per_core_hour)}", flush=True)
    cell = largest(sizes)
    customers = cell.outcome.message_customers
    rate_of_worker = worker_rate(cluster, customers)
    print(f"\nA worker predicts {rate_of_worker:,.0f} a second in messages of {customers:.1f} customers.\n")
    cases = run_cases(measured, cell, rate_of_worker, options.pull_s)
    print(f"Loads under KEDA\n\n{format_cases(cases)}")
    if options.out:
        report |= {"parameters": asdict(parameters), "check": [asdict(one.outcome) for one in checked]}
        report |= {"stacks": [asdict(one) for one in sizes]}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        plot(options.images, checked, sizes, cases)


def main() -> None:
    """Measure or read, check, and answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--stacks", type=int, nargs="+", help="1 1 2 4: with 1 API process and 1 worker, with 2 and 4")
    parser.add_argument("--rounds", type=int, default=3, help="the round with the most predictions a second counts")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement, and of its simulation")
    parser.add_argument("--from", dest="source", type=Path, help="measurements of an earlier run, as --out wrote them")
    parser.add_argument("--rates", type=int, nargs="+", default=CELL_RATES, help="predictions a second of one stack")
    parser.add_argument("--price-per-core-hour", type=float, help="of your cloud, in your currency")
    parser.add_argument("--pull-s", type=float, default=5, help="seconds until a new pod has its image and its node")
    parser.add_argument("--out", type=Path, help="write this JSON file, and the plots")
    parser.add_argument("--images", type=Path, default=ROOT / "docs/images", help="folder of the plots")
    options = parser.parse_args()
    if options.source:
        answer(read(options.source), options)
        return
    numbers = options.stacks or [number for stack in STACKS for number in stack]
    stacks = list(zip(numbers[::2], numbers[1::2], strict=True))
    servers = stand.choose_servers(options.servers)
    print(f"{stand.describe_machine()}, shared with the clients; {stand.SERVERS[servers]}", file=sys.stderr)
    answer(measure(servers, options.clients, stacks, options.rounds, options.seconds), options)


if __name__ == "__main__":
    main()
