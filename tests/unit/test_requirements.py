"""The requirements files: they agree with pyproject.toml and with each other, and each image has its packages only."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.harness.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
FILES = {
    "requirements.txt": PROJECT["tool"]["uv"]["default-groups"],
    "requirements/api.txt": ["api"],
    "requirements/worker.txt": ["worker"],
    "requirements/notebook.txt": ["worker", "train", "notebook"],
    "requirements/tracing.txt": ["tracing"],
    "requirements/test.txt": [*GROUPS, *EXTRAS],
}


def pins(name: str) -> dict[str, set[str]]:
    """Return the pinned versions of each package; a package may have one for each range of Python versions."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


def test_the_requirements_files_are_those_of_the_groups() -> None:
    files = [ROOT / "requirements.txt", *(ROOT / "requirements").iterdir()]
    assert {str(path.relative_to(ROOT)) for path in files} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_each_requirement_of_pyproject_has_a_pin_that_it_allows(name: str) -> None:
    pinned = pins(name)
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(text for group in FILES[name] for text in (GROUPS | EXTRAS)[group]),
    ]
    for requirement in map(Requirement, wanted):
        versions = pinned.get(requirement.name, set())
        assert versions, f"run `make lock`: {name} has no {requirement.name}"
        assert all(requirement.specifier.contains(version) for version in versions), f"run `make lock`: {requirement}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_pins_the_versions_of_the_test_requirements(name: str) -> None:
    everything = pins("requirements/test.txt")
    assert {package: everything.get(package) for package in pins(name)} == pins(name)


def test_only_the_extra_and_the_tests_have_the_sdk_of_opentelemetry() -> None:
    sdk = {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"}
    assert {name for name in FILES if sdk & pins(name).keys()} == {"requirements/tracing.txt", "requirements/test.txt"}
    assert all("opentelemetry-api" in pins(name) for name in FILES)


def test_the_api_image_has_no_ml_library_and_the_worker_image_no_web_framework() -> None:
    assert not {"joblib", "lightgbm", "numpy", "pandas", "scikit-learn", "scipy"} & pins("requirements/api.txt").keys()
    assert not {"fastapi", "starlette", "uvicorn"} & pins("requirements/worker.txt").keys()


@pytest.mark.parametrize("path", [ROOT / "Makefile", ROOT / "Dockerfile"], ids=lambda path: Path(path).name)
def test_every_install_of_a_requirements_file_checks_hashes(path: Path) -> None:
    installs = re.findall(r"^.*install.* -r (?!benchmarks).*$", path.read_text(), re.MULTILINE | re.IGNORECASE)
    assert installs
    assert [line for line in installs if "--require-hashes" not in line] == []
