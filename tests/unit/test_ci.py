"""One definition of the checks and of CI: the hook runs `make check`, GitHub runs .ci/run, which runs `make check`."""

import re

import yaml

from tests.harness.processes import ROOT

WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_commit_hook_is_make_check() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == ["make check"]


def test_the_workflow_runs_the_script_of_ci_and_nothing_else() -> None:
    assert re.findall(r"run: (.*)", WORKFLOW) == ["bash .ci/run"]
    assert {"make check", "make test"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_every_action_is_pinned_by_commit() -> None:
    actions = re.findall(r"uses: (.*)", WORKFLOW)
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action)] == []


def test_the_workflow_fetches_the_commits_that_the_tests_run() -> None:
    (job,) = yaml.safe_load(WORKFLOW)["jobs"].values()
    (checkout,) = [step for step in job["steps"] if "actions/checkout@" in step.get("uses", "")]
    assert checkout["with"]["fetch-depth"] == 0
