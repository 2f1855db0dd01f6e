"""The manifests of deploy/kubernetes, as `kubectl kustomize` renders them without a network."""

import shutil
import subprocess
from functools import cache
from typing import Any

import yaml

from tests.harness.processes import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("laptop", "production")
Manifest = dict[str, Any]


def kubectl() -> str:
    """Return the path of kubectl; an empty text if it is not installed."""
    return shutil.which("kubectl") or ""


@cache
def render(overlay: str) -> list[Manifest]:
    """Return the objects of an overlay."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> dict[str, Manifest]:
    """Return the objects of some kinds by their names."""
    return {found["metadata"]["name"]: found for found in render(overlay) if found["kind"] in kinds}


def pods(overlay: str) -> dict[str, Manifest]:
    """Return the pod template of each Deployment and StatefulSet by its name."""
    return {name: found["spec"]["template"] for name, found in of_kind(overlay, "Deployment", "StatefulSet").items()}


def container(overlay: str, name: str) -> Manifest:
    """Return the only container of a pod."""
    (only,) = pods(overlay)[name]["spec"]["containers"]
    found: Manifest = only
    return found


def senders(overlay: str, labels: Manifest, port: int | str) -> list[Manifest | None]:
    """Return the senders that may reach a port of pods with these labels.

    Args:
        overlay: with the NetworkPolicies.
        labels: of the pods.
        port: its number or its name, as the policies write it.

    Returns:
        The peers of each rule for this port; None stands for everybody.
    """
    found: list[Manifest | None] = []
    selecting = [
        policy["spec"]
        for policy in of_kind(overlay, "NetworkPolicy").values()
        if "Ingress" in policy["spec"]["policyTypes"]
        and policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    ]
    if not selecting:
        return [None]
    for rule in (rule for spec in selecting for rule in spec.get("ingress", ())):
        if "ports" not in rule or any(one["port"] == port for one in rule["ports"]):
            found += rule.get("from", [None])
    return found
