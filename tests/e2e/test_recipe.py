"""The recipe of docs/own-model.md for other data, executed as it is written: fit, package, paste, run."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
import requests
from playwright.sync_api import Browser

from tests.conftest import need_chromium
from tests.harness.browser import CHROMIUM, opened_page, running_browser, text
from tests.harness.launcher import Tree
from tests.harness.pages import Block, Page, matches
from tests.harness.processes import ROOT, until
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
    if CHROMIUM:
        with running_browser() as browser:
            assert_page_shows(
                browser, tree.url, name, {feature: example[feature] for feature in schema["properties"]}, expected
            )
    launcher.terminate()
    assert launcher.wait(60) == 0
    need_chromium()


def assert_page_shows(browser: Browser, url: str, name: str, example: dict[str, Any], expected: float) -> None:
    """Require that the page and the docs are those of this model, and speak of no bank."""
    with opened_page(browser, f"{url}/") as page:
        page.locator("#fields input").first.wait_for()
        shown = page.locator("#fields input, #fields select").evaluate_all("all => all.map(one => [one.id, one.value])")
        assert shown == [
            [f"f-{feature}", value if isinstance(value, str) else f"{value:g}"] for feature, value in example.items()
        ]
        page.get_by_role("button", name="Predict").click()
        until(lambda: text(page, "#probability"))
        assert float(text(page, "#probability").removesuffix("\u00a0%")) == pytest.approx(100 * expected, rel=0.05)
        assert text(page, "#h-answer") == f"Probability of {name}"
        card = requests.get(f"{url}/churn/model", timeout=30).json()
        assert page.locator("#reasons").is_visible() == bool(card["explains"])
        page.get_by_role("link", name="Service", exact=True).click()
        until(lambda: f"The model: {name}" in text(page, "#card"))
        assert page.locator("#card-features td:first-child").all_inner_texts() == list(example)
        assert page.title() == f"{name.capitalize()} predictions"
        assert re.findall(r"(?i)\b(?:bank|churn|customer)\w*", page.locator("body").text_content() or "") == []
    with opened_page(browser, f"{url}/docs") as page:
        until(lambda: f"{name.capitalize()} predictions" in text(page, ".title"))
        assert page.title() == f"{name.capitalize()} predictions"
        assert "bank" not in page.locator("body").inner_text().lower()


def run_as_shown(tree: Tree, block: Block) -> str:
    """Run the only command of a block, require the shown output, and return the printed one."""
    (command,) = block.commands()
    done = tree.run("sh", "-c", command.text)
    assert done.returncode == 0, done.stdout
    assert command.output
    assert matches(done.stdout, command.output), done.stdout
    return done.stdout
