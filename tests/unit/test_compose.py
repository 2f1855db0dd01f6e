"""docker-compose.yml: each container has limits, and the store refuses before the kernel kills it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.processes import ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
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


def test_every_package_of_the_images_has_hashes() -> None:
    assert (ROOT / "Dockerfile").read_text().count("--require-hashes") == 2
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
    assert len(set(passwords)) == 2
    again = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert again.returncode != 0
    assert (tmp_path / ".env").read_text() == text
