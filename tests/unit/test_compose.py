"""docker-compose.yml: each container has limits, and the store refuses before the kernel kills it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_task_app.settings import Settings
from tests.harness.processes import ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
MONITORING = ("prometheus", "grafana", "flower")
# `!reset` removes the ports of the file before it.
OVERLAY = (ROOT / "deploy/two-of-each.yml").read_text().replace("ports: !reset []", "ports: []")
TWO_OF_EACH: dict[str, Any] = yaml.safe_load(OVERLAY)["services"]
PROXY_CONFIG = (ROOT / "deploy/haproxy.cfg").read_text()
UNITS = {"m": 2**20, "mb": 2**20, "g": 2**30}


def as_bytes(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", size).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_has_limits(name: str) -> None:
    assert {"mem_limit", "cpus", "pids_limit"} <= SERVICES[name].keys()


@pytest.mark.parametrize("name", SERVICES)
def test_temporary_files_fit_into_the_memory_of_the_container(name: str) -> None:
    sizes = [as_bytes(mount.partition("size=")[2]) for mount in SERVICES[name]["tmpfs"]]
    assert 2 * sum(sizes) <= as_bytes(SERVICES[name]["mem_limit"]) * 4 / 3


def test_only_the_profile_starts_the_services_of_monitoring() -> None:
    assert [name for name in SERVICES if "profiles" not in SERVICES[name]] == ["rabbitmq", "redis", "worker", "api"]
    assert [name for name in SERVICES if SERVICES[name].get("profiles") == ["monitoring"]] == list(MONITORING)


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_is_confined_and_its_ports_are_on_the_loopback_address(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_prometheus_is_in_one_network_because_it_would_find_the_containers_of_two_networks_twice() -> None:
    assert SERVICES["prometheus"]["networks"] == ["inside"]
    assert all("inside" in SERVICES[name]["networks"] for name in SERVICES)


@pytest.mark.parametrize("name", MONITORING)
def test_the_images_of_monitoring_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", MONITORING)
def test_every_mounted_file_of_monitoring_exists_and_is_read_only(name: str) -> None:
    mounts = [volume.split(":") for volume in SERVICES[name]["volumes"] if volume.startswith("./")]
    assert mounts
    for source, _, mode in mounts:
        assert (ROOT / source).is_file()
        assert mode == "ro"


def test_flower_only_reads_and_asks_for_a_password() -> None:
    environment = SERVICES["flower"]["environment"]
    assert (environment["FLOWER_READ_ONLY"], environment["FLOWER_ENABLE_EVENTS"]) == ("true", "false")
    assert environment["FLOWER_BASIC_AUTH"] == "guest:${FLOWER_PASSWORD:-guest}"


def test_the_overlay_for_events_adds_one_option_to_the_command_of_the_worker() -> None:
    overlay = yaml.safe_load((ROOT / "deploy/monitoring/task-events.yml").read_text())["services"]
    (command,) = re.findall(r"^CMD (\[\"celery\".*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert overlay == {"worker": {"command": [*yaml.safe_load(command), "-E"]}}


def test_the_store_is_full_before_its_container_is() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert 2 * as_bytes(command[command.index("--maxmemory") + 1]) <= as_bytes(SERVICES["redis"]["mem_limit"])


def test_the_overlay_for_a_model_mounts_its_folder_read_only_into_the_worker() -> None:
    overlay = yaml.safe_load((ROOT / "deploy/own-model.yml").read_text())["services"]
    assert overlay.keys() == {"worker"} <= SERVICES.keys()
    source, target, mode = overlay["worker"]["volumes"][0].split(":")
    assert (source, mode) == ("./models", "ro")
    assert f"such as {target}/1/" in overlay["worker"]["environment"]["MODEL_PATH"]


def test_the_overlay_with_a_proxy_has_two_of_each_and_one_public_port() -> None:
    assert {name: TWO_OF_EACH[name]["deploy"]["replicas"] for name in ("api", "worker")} == {"api": 2, "worker": 2}
    assert TWO_OF_EACH["api"]["ports"] == []  # two containers cannot have one port of the host
    assert TWO_OF_EACH["proxy"]["ports"] == SERVICES["api"]["ports"]


def test_the_proxy_is_confined_as_the_other_containers() -> None:
    proxy = TWO_OF_EACH["proxy"]
    assert {"mem_limit", "cpus", "pids_limit"} <= proxy.keys()
    for name in ("restart", "read_only", "cap_drop", "security_opt"):
        assert proxy[name] == SERVICES["api"][name]


def test_the_proxy_waits_for_each_response_and_chooses_any_process() -> None:
    seconds = {name: int(value) for name, value in re.findall(r"timeout (\S+) (\d+)s", PROXY_CONFIG)}
    assert min(seconds["client"], seconds["server"]) > Settings.model_fields["max_wait_s"].default
    assert "balance roundrobin" in PROXY_CONFIG
    assert not re.search("cookie|stick", PROXY_CONFIG.replace("No sticky sessions", ""))
    assert "httpchk GET /livez" in PROXY_CONFIG  # an API without its servers answers 503 by itself


def test_every_package_of_the_images_has_hashes() -> None:
    assert (ROOT / "Dockerfile").read_text().count("--require-hashes") == 3
    for path in [ROOT / "requirements.txt", *(ROOT / "requirements").glob("*.txt")]:
        packages = re.findall(r"^\w[^=]*==.*(?:\n    --hash.*)*", path.read_text(), re.MULTILINE)
        assert packages
        assert [package for package in packages if "--hash=sha256:" not in package] == []


def test_make_env_writes_random_passwords_once(tmp_path: Path) -> None:
    command = ["make", "-f", str(ROOT / "Makefile"), "env"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    text, mode = (tmp_path / ".env").read_text(), (tmp_path / ".env").stat().st_mode
    assert mode & 0o077 == 0
    passwords = re.findall(r"_PASSWORD=([0-9a-f]{48})$", text, re.MULTILINE)
    assert len(set(passwords)) == 4
    variables = re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert re.findall(r"^(\w+)=", text, re.MULTILINE) == variables
    again = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert again.returncode != 0
    assert (tmp_path / ".env").read_text() == text
