"""Chromium or Chrome, steered by Playwright; a page notes each fault that its user would find in the console."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = "axe-core@4.14.1"  # https://github.com/dequelabs/axe-core, from npm


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """Start Chromium without its sandbox, which needs a user namespace."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened_page(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open an address in a new profile; at the end require no error, no warning, and no request to another host."""
    faults: list[str] = []
    parts = urlsplit(url)
    host = f"{parts.scheme}://{parts.netloc}/"
    context = browser.new_context(**options)
    page = context.new_page()
    # Chromium writes a line for each response from 400 on and each lost connection; no page can prevent that.
    page.on(
        "console",
        lambda message: faults.append(message.text) if "Failed to load resource" not in message.text else None,
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("blob:", host)) else faults.append(request.url))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    assert faults == []


def text(page: Page, selector: str) -> str:
    """Return the text of an element; empty if it is hidden."""
    return page.locator(selector).inner_text() if page.locator(selector).is_visible() else ""


def install_axe(folder: Path) -> str | None:
    """Return the source of axe-core; None if npm or its registry is away."""
    if shutil.which("npm") is None:
        return None
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), AXE]
    with contextlib.suppress(subprocess.SubprocessError):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return (folder / "node_modules/axe-core/axe.min.js").read_text()
    return None


def violations(page: Page, axe: str) -> list[str]:
    """Return each rule of WCAG 2.2 AA that the page breaks, with the elements."""
    page.evaluate(axe)
    tags = json.dumps(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"])
    found = page.evaluate(f"axe.run({{runOnly: {tags}}})")["violations"]
    return [f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
