"""deploy/kubernetes: every object is valid, and agrees with the images, the settings, the routes and the metrics."""

import importlib.util
import json
import re
import shlex
import tomllib
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app import app
from celery_task_app.consumer.lifecycle import STOP_WITHIN_S
from celery_task_app.settings import Settings
from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS
from tests.conftest import skip
from tests.harness import cluster
from tests.harness.custom_resources import SCHEMAS
from tests.harness.manifests import FOLDER, OVERLAYS, Manifest, container, kubectl, of_kind, pods, render, senders
from tests.harness.metrics import documented
from tests.harness.processes import ROOT

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes; 1.30 is the first one with `preStop: sleep`
API, WORKERS = "churn-api", ("churn-worker", "churn-batch-worker")
OURS = (API, *WORKERS)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SENTINEL_PORT = 26379
CHURN_PODS = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "churn"}}}

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture(autouse=True)
def need_kubectl() -> None:
    if not kubectl():
        skip("not installed: kubectl")


def image_command(target: str) -> list[str]:
    """Return the command of an image of the Dockerfile."""
    stage = (ROOT / "Dockerfile").read_text().partition(f"AS {target}\n")[2]
    command: list[str] = json.loads(re.findall(r"^CMD (\[.*\])$", stage, re.MULTILINE)[0])
    return command


def mebibytes(quantity: str) -> float:
    """Return a size of Kubernetes (Mi, Gi) or of docker-compose (m, g)."""
    number, unit = re.fullmatch(r"(\d+)([MmGg])i?", quantity).groups()  # type: ignore[union-attr]
    return float(number) * (1024 if unit in "Gg" else 1)


def environment(overlay: str, name: str) -> dict[str, Any]:
    """Return the variables of a container: a value, or the reference to a Secret."""
    found = container(overlay, name)
    maps = of_kind(overlay, "ConfigMap")
    variables = {
        key: value for source in found["envFrom"] for key, value in maps[source["configMapRef"]["name"]]["data"].items()
    }
    return variables | {
        one["name"]: one.get("value", one.get("valueFrom", {}).get("secretKeyRef")) for one in found["env"]
    }


@each_overlay
def test_each_object_is_valid(overlay: str) -> None:
    for manifest in render(overlay):
        if schema := SCHEMAS.get(manifest["kind"]):
            jsonschema.validate(manifest, schema)
        else:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_of_a_custom_resource_is_refused() -> None:
    scaler = json.loads(json.dumps(of_kind("production", "ScaledObject")["churn-worker"]))
    scaler["spec"]["minReplicas"] = scaler["spec"].pop("minReplicaCount")
    with pytest.raises(jsonschema.ValidationError, match="minReplicas"):
        jsonschema.validate(scaler, SCHEMAS["ScaledObject"])


@each_overlay
def test_each_object_is_in_the_namespace_that_refuses_privileged_pods(overlay: str) -> None:
    (namespace,) = of_kind(overlay, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [found for found in render(overlay) if found["kind"] != "Namespace"]
    assert {found["metadata"]["namespace"] for found in others} == {namespace["metadata"]["name"]}


@each_overlay
def test_each_pod_is_confined(overlay: str) -> None:
    for template in pods(overlay).values():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in spec["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert one["resources"].keys() == {"requests", "limits"}
            assert one["resources"]["requests"].keys() == one["resources"]["limits"].keys() == {"cpu", "memory"}


@each_overlay
def test_our_pods_run_as_the_user_of_the_image(overlay: str) -> None:
    (uid,) = re.findall(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text())
    for name in OURS:
        assert pods(overlay)[name]["spec"]["securityContext"]["runAsUser"] == int(uid)


@each_overlay
def test_each_image_has_a_tag_and_no_registry(overlay: str) -> None:
    images = [one["image"] for template in pods(overlay).values() for one in template["spec"]["containers"]]
    assert [image for image in images if not re.fullmatch(r"[a-z-]+:(?!latest)[\w.-]+", image)] == []


def test_production_runs_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container("production", name)["image"].partition(":")[2] for name in OURS} == {version}


@each_overlay
def test_each_limit_is_that_of_docker_compose(overlay: str) -> None:
    services = {API: "api", "churn-worker": "worker", "churn-batch-worker": "worker"}
    if overlay == "laptop":
        services |= {"rabbitmq": "rabbitmq", "redis": "redis"}
    for name, service in services.items():
        limits, template = container(overlay, name)["resources"]["limits"], pods(overlay)[name]
        assert mebibytes(limits["memory"]) == mebibytes(COMPOSE[service]["mem_limit"])
        assert float(limits["cpu"]) == COMPOSE[service]["cpus"]
        (tmp,) = COMPOSE[service]["tmpfs"]
        volume = next(one["emptyDir"] for one in template["spec"]["volumes"] if one["name"] == "tmp")
        assert volume["medium"] == "Memory"
        assert mebibytes(volume["sizeLimit"]) == mebibytes(tmp.partition("size=")[2])


@each_overlay
def test_the_api_runs_the_command_of_its_image_on_the_port_of_the_service(overlay: str) -> None:
    found = container(overlay, API)
    assert not {"command", "args"} & found.keys()
    command = image_command("api")
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert ports["http"] == int(command[command.index("--port") + 1])
    service = of_kind(overlay, "Service")[API]["spec"]
    assert [port["targetPort"] for port in service["ports"]] == ["http"]
    assert service["selector"].items() <= pods(overlay)[API]["metadata"]["labels"].items()


@each_overlay
def test_the_workers_run_the_command_of_their_image_and_consume_each_queue_once(overlay: str) -> None:
    queues = []
    for name in WORKERS:
        *command, option, names = container(overlay, name)["command"]
        assert (command, option) == (image_command("worker"), "-Q")
        queues += names.split(",")
    assert sorted(queues) == sorted(queue.name for queue in (PREDICTIONS, BATCHES, DEAD))
    assert container(overlay, "churn-batch-worker")["command"][-1] == BATCHES.name


@each_overlay
def test_the_two_kinds_of_workers_differ_in_their_queues_only(overlay: str) -> None:
    first, second = (json.dumps(of_kind(overlay, "Deployment")[name]) for name in WORKERS)
    second = second.replace("churn-batch-worker", "churn-worker").replace('"batch-worker"', '"worker"')
    assert second.replace(BATCHES.name, f"{PREDICTIONS.name},{DEAD.name}") == first


@each_overlay
@pytest.mark.parametrize("name", OURS)
def test_each_variable_is_a_setting_with_a_valid_value(overlay: str, name: str) -> None:
    variables = environment(overlay, name)
    assert {"BROKER_URI", "BACKEND_URI", "METRICS_PORT", "METRICS_HOST"} <= variables.keys()
    assert variables.keys() <= {field.upper() for field in Settings.model_fields}
    values = {key.lower(): value for key, value in variables.items() if isinstance(value, str)}
    settings = Settings.model_validate(values)
    ports = {port["name"]: port["containerPort"] for port in container(overlay, name)["ports"]}
    assert ports["metrics"] == settings.metrics_port + (name != API)


@each_overlay
def test_each_secret_is_a_reference(overlay: str) -> None:
    for name in OURS:
        for key in ("BROKER_URI", "BACKEND_URI"):
            assert environment(overlay, name)[key]["key"] == key
    assert environment(overlay, API)["API_KEYS"]["optional"] is True


def test_production_brings_no_secret_and_the_laptop_brings_all_keys() -> None:
    assert of_kind("production", "Secret") == {}
    secrets = of_kind("laptop", "Secret")
    for template in pods("laptop").values():
        for one in (one for one in template["spec"]["containers"][0]["env"] if "valueFrom" in one):
            reference = one["valueFrom"]["secretKeyRef"]
            assert reference.get("optional") or reference["key"] in secrets[reference["name"]]["data"]


@each_overlay
@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_each_probe_of_the_api_is_a_route_with_its_parameters(overlay: str, probe: str) -> None:
    found = container(overlay, API)
    url = urlsplit(found[probe]["httpGet"]["path"])
    operation = app.openapi()["paths"][url.path]["get"]
    values = {one["name"]: one["schema"]["const"] for one in operation.get("parameters", ())}
    assert dict(parse_qsl(url.query)).items() <= values.items()
    assert found[probe]["httpGet"]["port"] in {port["name"] for port in found["ports"]}


@each_overlay
def test_readiness_of_the_api_needs_no_worker_and_liveness_no_server(overlay: str) -> None:
    probes = container(overlay, API)
    assert probes["readinessProbe"]["httpGet"]["path"] == "/readyz?without=workers"
    assert probes["startupProbe"]["httpGet"]["path"] == probes["livenessProbe"]["httpGet"]["path"] == "/livez"


@each_overlay
@pytest.mark.parametrize("name", WORKERS)
def test_each_probe_of_a_worker_is_its_health_check(overlay: str, name: str) -> None:
    found = container(overlay, name)
    check = found["readinessProbe"]["exec"]["command"]
    assert check == COMPOSE["worker"]["healthcheck"]["test"][1:]
    assert check[:2] == ["python", "-m"]
    assert importlib.util.find_spec(check[2]) is not None
    assert found["livenessProbe"]["exec"]["command"] == [*check, "--hang"]
    assert "startupProbe" not in found  # it would restart a worker that waits for the broker


@each_overlay
def test_each_process_may_end_by_itself(overlay: str) -> None:
    command = image_command("api")
    spec = pods(overlay)[API]["spec"]
    removed_s = container(overlay, API)["lifecycle"]["preStop"]["sleep"]["seconds"]
    answered_s = int(command[command.index("--timeout-graceful-shutdown") + 1])
    assert removed_s > 0
    assert removed_s + answered_s + 10 <= spec["terminationGracePeriodSeconds"]
    for name in WORKERS:
        assert pods(overlay)[name]["spec"]["terminationGracePeriodSeconds"] >= STOP_WITHIN_S + 10
    for name in OURS:
        assert pods(overlay)[name]["spec"]["shareProcessNamespace"] is True  # docker-compose: `init: true`


@each_overlay
def test_a_node_is_drained_one_pod_at_a_time(overlay: str) -> None:
    budgets = of_kind(overlay, "PodDisruptionBudget")
    for name in OURS:
        spec = budgets[name]["spec"]
        assert spec["maxUnavailable"] == 1
        labels = pods(overlay)[name]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        update = of_kind(overlay, "Deployment")[name]["spec"]["strategy"]["rollingUpdate"]
        assert update == {"maxSurge": 1, "maxUnavailable": 0}


@each_overlay
def test_only_our_pods_reach_the_broker_and_the_result_store(overlay: str) -> None:
    assert senders(overlay, {"app.kubernetes.io/component": "rabbitmq"}, 5672) == [CHURN_PODS]
    store_pods = {"app.kubernetes.io/component": "redis"}  # replicas and Sentinels too, which reach each other
    for port in (6379, SENTINEL_PORT):
        assert senders(overlay, store_pods, port) == [CHURN_PODS, {"podSelector": {"matchLabels": store_pods}}]
    if overlay == "laptop":
        for name in ("rabbitmq", "redis"):
            assert pods(overlay)[name]["metadata"]["labels"]["app.kubernetes.io/component"] == name


@each_overlay
@pytest.mark.parametrize("name", OURS)
def test_only_the_monitoring_reads_metrics_and_only_the_api_answers_clients(overlay: str, name: str) -> None:
    labels = pods(overlay)[name]["metadata"]["labels"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert senders(overlay, labels, "metrics") == [monitoring]
    assert senders(overlay, labels, "http") == ([None] if name == API else [])


@each_overlay
def test_our_pods_reach_the_servers_of_their_addresses(overlay: str) -> None:
    egress = of_kind(overlay, "NetworkPolicy")["egress"]["spec"]
    assert egress["podSelector"] == CHURN_PODS["podSelector"]
    allowed = {one["port"] for rule in egress["egress"] for one in rule["ports"]}
    defaults = [Settings.model_fields[name].default for name in ("broker_uri", "backend_uri")]
    assert {53, SENTINEL_PORT, *(urlsplit(uri).port for uri in defaults)} <= allowed


def test_the_brokers_nodes_have_the_settings_of_the_cluster_that_was_broken() -> None:
    (spec,) = (one["spec"]["rabbitmq"] for one in of_kind("production", "RabbitmqCluster").values())
    settings = set(spec["additionalConfig"].splitlines())
    discovery = {line for line in cluster.SETTINGS if line.startswith("cluster_formation")}  # the operator's own
    assert settings == {*cluster.SETTINGS} - discovery
    assert spec["advancedConfig"].strip() == cluster.ADVANCED_SETTINGS.strip()


def test_prometheus_reads_the_metrics_of_all_our_pods() -> None:
    spec = of_kind("production", "PodMonitor")["churn"]["spec"]
    assert [one["port"] for one in spec["podMetricsEndpoints"]] == ["metrics"]
    for name in OURS:
        labels = pods("production")[name]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert "metrics" in {port["name"] for port in container("production", name)["ports"]}


def test_prometheus_reads_the_metrics_of_the_broker_that_the_alerts_need() -> None:
    spec = of_kind("production", "PodMonitor")["rabbitmq"]["spec"]
    (broker,) = of_kind("production", "RabbitmqCluster")
    # The operator gives the pods these labels: the second has the name of the cluster.
    assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/component": "rabbitmq"}
    assert spec["jobLabel"] == "app.kubernetes.io/name"
    assert f'up{{job="{broker}"}}' in (ROOT / "deploy/monitoring/rules.yml").read_text()


@pytest.mark.parametrize(
    ("name", "metric", "setting"),
    [
        ("churn-worker", "churn_waiting_customers", "queue_high_water"),
        ("churn-batch-worker", "churn_waiting_batch_rows", "batch_high_water"),
    ],
)
def test_workers_are_scaled_by_waiting_customers(name: str, metric: str, setting: str) -> None:
    spec = of_kind("production", "ScaledObject")[name]["spec"]
    assert spec["scaleTargetRef"]["name"] == name
    waiting = spec["triggers"][0]["metadata"]
    assert waiting["query"] == f"max({metric})"
    most = Settings.model_fields[setting].default  # more do not wait: the API refuses them
    assert int(waiting["threshold"]) * spec["maxReplicaCount"] == most
    for trigger in spec["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metadata"]["activationThreshold"] == "0"
        assert set(re.findall(r"churn_\w+", trigger["metadata"]["query"])) <= documented("API").keys()
    assert 0 < spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"


@pytest.mark.parametrize("name", OURS)
def test_a_scaler_removes_one_pod_at_a_time_and_owns_the_number_of_pods(name: str) -> None:
    assert "replicas" not in of_kind("production", "Deployment")[name]["spec"]
    spec = of_kind("production", "ScaledObject", "HorizontalPodAutoscaler")[name]["spec"]
    assert spec["scaleTargetRef"]["name"] == name
    advanced: Manifest = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", spec)
    down = advanced["behavior"]["scaleDown"]
    grace_s = pods("production")[name]["spec"]["terminationGracePeriodSeconds"]
    assert down["stabilizationWindowSeconds"] == 300
    assert [(one["type"], one["value"]) for one in down["policies"]] == [("Pods", 1)]
    assert down["policies"][0]["periodSeconds"] >= grace_s  # the pod before has ended


def test_a_laptop_with_two_cores_has_room_for_all_pods() -> None:
    requests = [container("laptop", name)["resources"]["requests"]["cpu"] for name in pods("laptop")]
    assert sum(int(cpu.removesuffix("m")) for cpu in requests) <= 1_000


def test_the_laptop_has_the_servers_of_docker_compose() -> None:
    for name in ("rabbitmq", "redis"):
        found = container("laptop", name)
        assert found["image"] == COMPOSE[name]["image"]
    redis = [part.replace("$(", "${").replace(")", ":-guest}") for part in container("laptop", "redis")["args"]]
    assert redis == COMPOSE["redis"]["command"]


def test_each_manifest_is_part_of_an_overlay() -> None:
    listed = set()
    for path in FOLDER.rglob("kustomization.yaml"):
        listed |= {(path.parent / name).resolve() for name in yaml.safe_load(path.read_text())["resources"]}
    files = set(FOLDER.rglob("*.yaml")) - set(FOLDER.rglob("kustomization.yaml"))
    assert {path.resolve() for path in files} <= listed
    assert shlex.split((FOLDER / "base" / "settings.env").read_text(), comments=True)
