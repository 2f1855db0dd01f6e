"""The documentation: its tables, links and blocks. tests/e2e/test_docs.py runs its commands."""

import re
from typing import Any

import pytest

from api.http.problems import ProblemType
from app import app
from celery_task_app.settings import Settings
from tests.harness.pages import SHELL, Page, all_pages
from tests.harness.processes import ROOT

PAGES = {page.name: page for page in all_pages()}
MARKDOWN = [
    *PAGES.values(),
    *map(Page, [ROOT / "CHANGELOG.md", *ROOT.glob("benchmarks/*.md"), *ROOT.glob("docs/adr/*")]),
]
each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
OTHER_VARIABLES = {
    "PORT",
    "DATA",
    "ARGS",
    "MODEL",
    "SAMPLE",
    "MINUTES",
    "PIP_INDEX_URL",
    "PYTHON",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "REQUIRE_SERVICES",
    "RABBITMQ_PASSWORD",
    "REDIS_PASSWORD",
    "GRAFANA_PASSWORD",
    "FLOWER_PASSWORD",
}


def test_the_readme_has_at_most_150_lines_and_1200_words() -> None:
    text = PAGES["README.md"].text
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1_200


def test_the_settings_page_has_every_setting_with_its_default_range_and_docstring() -> None:
    settings = {name.upper(): described(field) for name, field in Settings.model_fields.items()}
    assert {name: cells for name, *cells in PAGES["docs/settings.md"].rows("variable")} == settings


def described(field: Any) -> list[str]:
    """Return the cells of a setting: default, range, meaning."""
    default = str(field.default).replace(f"{ROOT}/", "")
    limits = {
        name: value
        for one in field.metadata
        for name in ("ge", "le")
        if (value := getattr(one, name, None)) is not None
    }
    extent = f"{limits['ge']} to {limits['le']}" if "le" in limits else f"from {limits['ge']}" if limits else ""
    meaning = " ".join((field.description or "").split())
    return [default.lower() if isinstance(field.default, bool) else default, extent, meaning]


def test_the_settings_page_has_the_variables_of_commands_and_containers() -> None:
    rows = PAGES["docs/settings.md"].rows("name")
    assert {name for names, *_ in rows for name in re.findall("[A-Z_]+", names)} == OTHER_VARIABLES
    compose = "".join(path.read_text() for path in [ROOT / "docker-compose.yml", *ROOT.glob("deploy/*.yml")])
    makefile = (ROOT / "Makefile").read_text()
    used = set(re.findall(r"\$\{(\w+)", compose)) | set(
        re.findall(r"\((?:or \$\()?(PORT|DATA|ARGS|MODEL|SAMPLE|MINUTES|PYTHON)\)", makefile)
    )
    assert used <= OTHER_VARIABLES | {name.upper() for name in Settings.model_fields}


def test_the_problems_table_has_every_problem() -> None:
    documented = {kind: (int(status), cause) for kind, status, cause in PAGES["docs/http-api.md"].rows("type")}
    assert documented == {kind.type: (kind.status, kind.when.strip("`")) for kind in ProblemType}


def test_the_routes_table_has_every_route() -> None:
    documented = [request for request, *_ in PAGES["docs/http-api.md"].rows("request") if request]
    routes = [f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods]
    assert sorted(documented) == sorted(routes)


def test_the_parameters_table_has_every_header_and_query_parameter() -> None:
    documented = {
        (request, where, re.split("[:=]", name)[0])
        for name, where, requests, _ in PAGES["docs/http-api.md"].rows("name")
        for request in re.findall(r"[A-Z]+ /[^`,]+", requests)
    }
    assert documented == {
        (f"{method.upper()} {path}", parameter["in"], parameter["name"])
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        for parameter in operation.get("parameters", ())
        if parameter["in"] != "path"
    }


def test_every_make_target_is_documented_and_every_documented_one_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documented = [command.removeprefix("make ") for command, _ in PAGES["docs/getting-started.md"].rows("command")]
    assert sorted(documented) == sorted(targets)


@each_page
def test_every_named_make_target_exists(page: Page) -> None:
    makefile = (ROOT / "Makefile").read_text()
    code = re.findall(r"`[^`\n]*`", page.prose) + [block.text for block in page.blocks() if block.language in SHELL]
    named = re.findall(r"\bmake ([a-z-]+)", "\n".join(code))
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_file_of_the_table_exists_and_every_module_is_in_it() -> None:
    documented = {path.rstrip("/") for path, _ in PAGES["docs/architecture.md"].rows("file")}
    assert [path for path in documented if not (ROOT / path).exists()] == []
    modules = [
        path.relative_to(ROOT)
        for package in ("api", "celery_task_app", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if path.stem != "__init__"
    ]
    folders = documented - {"api", "celery_task_app", "benchmarks"}
    assert [str(path) for path in modules if not folders & {str(one) for one in (path, *path.parents)}] == []


def test_the_table_of_records_has_every_record_with_its_title() -> None:
    folder = ROOT / "docs/adr"
    titles = {path.name: path.read_text().splitlines()[0] for path in folder.glob("0*.md")}
    table = re.findall(r"^\| \[(\d+)\]\(([^)]+)\) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert {name: f"# {number}. {title}" for number, name, title in table} == titles


def test_the_folders_of_the_readme_exist_and_are_all_folders_with_code() -> None:
    documented = {name for cell, *_ in PAGES["README.md"].rows("folder") for name in re.findall(r"[\w/.]+", cell)}
    assert [name for name in documented if not (ROOT / name).exists()] == []
    folders = {path.parent for package in ("api", "celery_task_app") for path in (ROOT / package).rglob("*.py")}
    top = {path for path in folders if len(path.relative_to(ROOT).parts) <= 2}
    assert {f"{path.relative_to(ROOT)}/" for path in top} <= documented


@pytest.mark.parametrize("page", MARKDOWN, ids=[page.name for page in MARKDOWN])
def test_every_link_leads_to_a_file_and_a_heading(page: Page) -> None:
    dead = []
    for link in page.links():
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name) if name else page.path
        if not target.exists() or (anchor and anchor not in Page(target).anchors()):
            dead.append(link)
    assert dead == []


def test_every_page_is_in_the_index() -> None:
    index = PAGES["docs/README.md"].links()
    assert sorted(index) == sorted(
        [*(page.path.name for page in PAGES.values() if page.path.name != "README.md"), "adr/README.md"]
    )


@each_page
def test_every_shell_block_is_run_or_says_why_not(page: Page) -> None:
    """Blocks without a mark are run by tests/e2e/test_docs.py; fences without a language hold diagrams only."""
    for block in page.blocks():
        assert block.language in {*SHELL, "python", "json", "text", "yaml", "ini", ""}, block
        if not block.language:
            assert not re.search(r"^\$ |^(curl|make|docker|python) ", block.text, re.MULTILINE), block
        if block.mark and block.mark[0] == "not run":
            assert len(block.mark[1]) > 10, block
            assert [path for path in re.findall(r"tests/[\w/]+\.py", block.mark[1]) if not (ROOT / path).exists()] == []
        if block.language == "console":
            assert block.text.startswith("$ "), block
        if block.is_run:
            assert list(block.commands()), block


def test_the_glossary_is_sorted() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\*: ", PAGES["docs/glossary.md"].text, re.MULTILINE)
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.casefold)
