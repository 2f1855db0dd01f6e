"""The recipe of docs/own-model.md for other data, executed as it is written: fit, package, paste, run."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import joblib
import pandas as pd
import pytest
import requests

from tests.harness.launcher import Tree
from tests.harness.pages import Block, Page, matches
from tests.harness.processes import ROOT
from tests.harness.servers import Servers

PAGE = Page(ROOT / "docs/own-model.md")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A copy of the repository, in which `make` finds this environment installed."""
    tree = Tree(tmp_path / "own")
    environment = tree.path / ".venv"
    environment.mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.startswith("."):
            (environment / path.name).symlink_to(path)
    (environment / ".installed").touch()
    yield tree
    tree.close()


def replace(path: Path, pattern: str, text: str) -> None:
    """Replace the only match of a pattern in a file."""
    changed, count = re.subn(pattern, lambda _: text, path.read_text(), flags=re.DOTALL)
    assert count == 1
    path.write_text(changed)


def test_the_page_has_a_recipe_for_each_example() -> None:
    marks = [block.mark[1] for block in PAGE.blocks() if block.mark and block.mark[0] == "own-model"]
    assert marks == [f"{name} {step}" for name in ("iris", "returns") for step in ("train", "package", "run")]


@pytest.mark.parametrize("name", ["iris", "returns"])
def test_the_recipe_for_another_model_works_as_written(servers: Servers, tree: Tree, name: str) -> None:
    steps = [block for block in PAGE.blocks() if block.mark and block.mark[1].startswith(f"{name} ")]
    train, package, serve = steps
    trained = tree.run(".venv/bin/python", "-W", "error", "-c", train.text)
    assert trained.returncode == 0, trained.stdout
    printed = run_as_shown(tree, package)
    _, _, blocks = printed.partition("Paste into models.py, and adapt the ranges:\n\n")
    customer, _, rest = blocks.partition("\n\nPaste into test_client.py:\n\n")
    replace(tree.path / "models.py", r"class Customer\(BaseModel\):\n.*?(?=\n\n\nclass )", customer)
    replace(tree.path / "test_client.py", r"CUSTOMER = \{.*?\}\n", rest.partition("\n")[0] + "\n")
    (command,) = serve.commands()
    assert command.text == f"MODEL_PATH={name}.joblib make run"

    launcher = tree.serve(MODEL_PATH=f"{name}.joblib", **servers.env)
    (probability,) = re.findall(r"The probability .*: (\S+)\n", tree.output())
    sample = pd.read_csv(tree.path / f"{name}.csv")
    schema = requests.get(f"{tree.url}/openapi.json", timeout=30).json()["components"]["schemas"]["Customer"]
    (example,) = schema["examples"]
    assert list(schema["properties"]) == list(sample)
    assert example.keys() == schema["properties"].keys()
    expected = joblib.load(tree.path / f"{name}.joblib").predict_proba(pd.DataFrame([example])[list(sample)])[0, 1]
    assert float(probability) == pytest.approx(expected, abs=1e-9)
    shown = requests.post(f"{tree.url}/churn/predict", json=example, headers={"Prefer": "wait=20"}, timeout=30)
    assert shown.json()["probability"] == float(probability)
    assert requests.get(f"{tree.url}/docs", timeout=30).status_code == 200
    launcher.terminate()
    assert launcher.wait(60) == 0


def run_as_shown(tree: Tree, block: Block) -> str:
    """Run the only command of a block, require the shown output, and return the printed one."""
    (command,) = block.commands()
    done = tree.run("sh", "-c", command.text)
    assert done.returncode == 0, done.stdout
    assert command.output
    assert matches(done.stdout, command.output), done.stdout
    return done.stdout
