"""The README: its tables, commands, links and recipe are compared with the code and with a running service."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import joblib
import pandas as pd
import pytest

from api.http.problems import ProblemType
from celery_task_app.settings import Settings
from tests.conftest import DATA
from tests.harness.launcher import Tree
from tests.harness.processes import ROOT, until
from tests.harness.service import Service

README = (ROOT / "README.md").read_text()


def table(header: str) -> list[list[str]]:
    """Return the rows below the table header that begins so; cells without their backquotes."""
    _, _, rest = README.partition(f"\n{header}")
    rows = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_settings_table_has_every_setting_with_its_default_and_docstring() -> None:
    documented = {name: (default, meaning) for name, default, meaning in table("| variable ")}
    settings = {
        name.upper(): (str(field.default).replace(f"{ROOT}/", ""), " ".join((field.description or "").split()))
        for name, field in Settings.model_fields.items()
    }
    for name in ("WARM_UP", "REMOTE_CONTROL"):
        settings[name] = ("false", settings[name][1])
    assert documented == settings


def test_the_problems_table_has_every_problem() -> None:
    documented = {kind: (int(status), when) for kind, status, when in table("| type ")}
    assert documented == {f"/problems/{one.slug}": (one.status, one.when.strip("`")) for one in ProblemType}


def test_every_file_of_the_table_exists_and_every_module_is_in_it() -> None:
    documented = {Path(path) for path, _ in table("| file ")}
    assert [str(path) for path in documented if not (ROOT / path).exists()] == []
    modules = [path for package in ("api", "celery_task_app") for path in (ROOT / package).rglob("*.py")]
    places = {path.relative_to(ROOT) for path in modules if path.stem != "__init__"}
    folders = {
        path for path in documented if len(path.parts) > 1
    }  # `api/http/` has a row; `api/` has one for each module
    assert [str(path) for path in places if path not in documented and not folders & set(path.parents)] == []


def test_every_named_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z-]+)\b(?= |`|\n)", "\n".join(re.findall(r"`[^`]*`|\$ .*", README))))
    assert {"run", "test", "train", "help"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_link_to_a_file_has_its_file() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_curl_commands_return_the_shown_responses(service: Service) -> None:
    block = next(
        block for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) if "/churn/predict -H" in block
    )
    post, shown_task, get, shown_prediction = re.fullmatch(
        r"\$ (curl.*?\}')\n(\{.*?\})\n\$ (curl.*?)\n(\{.*\})\n", block, re.DOTALL
    ).groups()  # type: ignore[union-attr]

    def run(command: str) -> dict[str, object]:
        command = command.replace("localhost:8000", service.url.removeprefix("http://"))
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
        return json.loads(answer)  # type: ignore[no-any-return]

    task, expected = run(post), json.loads(shown_task)
    assert task == expected | {"task_id": task["task_id"]}
    get = get.replace(expected["task_id"], str(task["task_id"]))
    prediction = until(lambda: (answer := run(get))["status"] == "Success" and answer)
    assert prediction == json.loads(shown_prediction) | {"task_id": task["task_id"]}


def test_the_curl_commands_with_headers_wait_repeat_and_delete(
    service: Service, customer: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "customer.json").write_text(json.dumps(customer))
    commands = re.findall(r"^\$ (curl .*(?:customer\.json|DELETE .*/result/).*)$", README, re.MULTILINE)

    def run(command: str) -> str:
        command = command.replace("localhost:8000", service.url.removeprefix("http://"))
        return subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    wait, idempotent, delete = commands
    assert json.loads(run(wait))["status"] == "Success"
    task_id = json.loads(run(idempotent))["task_id"]
    assert json.loads(run(idempotent))["task_id"] == task_id
    assert run(re.sub(r"[0-9a-f-]{36}", task_id, delete)) == ""
    assert service.result(task_id).status_code == 410


def test_the_commands_for_an_api_key_create_a_key_and_its_digest(tmp_path: Path) -> None:
    make, export = re.findall(r"^\$ (.*client\.key.*)$", README, re.MULTILINE)
    command = f"{make} 2>&1 && {export} && echo $API_KEYS"
    printed = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    key = (tmp_path / "client.key").read_text().strip()
    assert len(key) == 64
    assert printed.strip() == hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.skipif(not DATA.exists(), reason=f"no data set at {DATA}: set DATA")
def test_the_commands_for_batches_return_the_shown_responses(service: Service, tmp_path: Path) -> None:
    (block,) = [block for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) if "churn/batches" in block]
    score, post, get, results, delete = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    shown_post, shown_get = (json.loads(line) for line in re.findall(r"^\{.*$", block, re.MULTILINE))
    (tmp_path / "BankChurners.csv").symlink_to(DATA.resolve())

    def run(command: str) -> str:
        command = command.replace("localhost:8000", service.url.removeprefix("http://"))
        command = command.replace(".venv/bin/python", f"PYTHONPATH={ROOT} {sys.executable}")
        command = command.replace("score Bank", f"score --url {service.url} Bank")
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout

    run(score)
    accepted = json.loads(run(post))
    batch_id, shown_id = accepted["batch_id"], shown_post["batch_id"]
    assert accepted == shown_post | {"batch_id": batch_id}
    get, results, delete = (command.replace(shown_id, batch_id) for command in (get, results, delete))
    batch = until(lambda: (answer := json.loads(run(get)))["status"] == "Success" and answer)
    assert batch == shown_get | {"batch_id": batch_id}
    run(results)
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 10_128
    assert len((tmp_path / "scored.csv").read_text().splitlines()) == 10_128
    run(delete)
    assert "deleted" in run(get)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A copy of the repository."""
    tree = Tree(tmp_path / "own")
    yield tree
    tree.close()


def test_the_recipe_for_another_model_works_as_written(tree: Tree) -> None:
    recipe = dict(re.findall(r"<!-- own-model: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))
    replace(tree.path / "models.py", r"class Customer\(BaseModel\):\n.*?(?=\n\nclass )", recipe["models.py"])
    replace(tree.path / "test_client.py", r"CUSTOMER = \{.*?\}\n", recipe["test_client.py"])
    create = recipe["run"] + recipe["manifest"]
    subprocess.run([sys.executable, "-W", "error", "-c", create], cwd=tree.path, check=True)
    launcher = tree.serve(MODEL_PATH="iris.joblib")
    (probability,) = re.findall(r"The probability .*: (\S+)\n", tree.output())
    model = joblib.load(tree.path / "iris.joblib")
    example = {"sepal_length": [5.1], "petal_length": [1.4], "petal_width": [0.2]}
    assert float(probability) == model.predict_proba(pd.DataFrame(example))[0, 1]
    assert json.loads((tree.path / "iris.json").read_text())["golden"][0]["probability"] == float(probability)
    launcher.terminate()
    assert launcher.wait(60) == 0


def replace(path: Path, pattern: str, text: str) -> None:
    """Replace the only match of a pattern in a file."""
    changed, count = re.subn(pattern, lambda _: text, path.read_text(), flags=re.DOTALL)
    assert count == 1
    path.write_text(changed)
