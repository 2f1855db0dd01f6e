"""The page at /, in a real browser on a real service."""

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page

from tests.conftest import DATA, need_chromium
from tests.harness.browser import install_axe, opened_page, running_browser, text, violations
from tests.harness.customers import as_csv
from tests.harness.processes import ROOT, until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api, running_service
from tests.harness.synthetic_customers import as_json_rows, make_table

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

HIGH_WATER = 40
SCRIPT = "<script>document.title = 'run'</script>"
FORMULA = "=cmd|' /C calc'!A0"
PICTURES = ROOT / ".data/page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need_chromium()
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(servers, tmp_path_factory.mktemp("page"), QUEUE_HIGH_WATER=str(HIGH_WATER)) as running:
        yield running


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    with opened_page(browser, f"{service.url}/") as page:
        page.get_by_role("button", name="Predict").wait_for()
        page.locator("#fields input").first.wait_for()
        yield page


def probability(service: Service, customer: dict[str, Any]) -> str:
    """Return the API's probability as the page shows it."""
    percent = 100 * service.post(customer, Prefer="wait=20").json()["probability"]
    return f"{float(f'{percent:.1f}' if percent >= 1 else f'{percent:.2g}'):g}\u00a0%"


def predict(page: Page) -> None:
    page.get_by_role("button", name="Predict").click()


def choose(page: Page, path: Path) -> None:
    """Choose a file among many customers, and wait until it is read."""
    page.get_by_role("link", name="A whole file").click()
    page.locator("#drop").wait_for()
    page.locator("#file").set_input_files(path)
    page.locator("#score:enabled").wait_for()


def scored(page: Page, folder: Path) -> list[dict[str, str]]:
    """Download the scored file, and return its rows."""
    link = page.get_by_role("link", name="Download the scored file")
    link.wait_for()
    with page.expect_download() as download:
        link.click()
    download.value.save_as(folder / "scored.csv")
    with (folder / "scored.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def batch_url(page: Page, service: Service) -> str:
    """Return the batch of the address."""
    page.wait_for_url("**/#file/*")
    return f"{service.url}/churn/batches/{page.url.rpartition('/')[2]}"


def cases(probabilities: list[float]) -> str:
    """Return the expected cases as the page shows them."""
    expected = sum(probabilities)
    return f"{round(expected, 1):g}" if expected < 9.95 else str(round(expected))


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "customers.csv"
    path.write_text(as_csv(rows))
    return path


# One customer


def test_the_example_is_predicted_in_one_click(page: Page, service: Service, customer: dict[str, Any]) -> None:
    predict(page)
    page.locator("#probability").wait_for()
    assert text(page, "#probability") == probability(service, customer)
    assert "below the threshold of 43" in text(page, "#verdict")
    steps = page.locator("#steps li").all_inner_texts()
    assert (len(steps), steps[0].split()[0], steps[-1].split()[-2:]) == (9, "Start", text(page, "#probability").split())
    assert service.get("/churn/model").json()["version"] in text(page, "#facts")


def test_the_milliseconds_of_each_stage_are_shown(page: Page) -> None:
    def server_timing() -> str:
        with page.expect_response("**/churn/predict*") as response:
            predict(page)
        return response.value.headers.get("server-timing", "")  # none if the prediction took longer than a second

    header = until(server_timing)
    stages = [(stage.partition(";")[0], stage.rpartition("=")[2]) for stage in header.split(", ")]
    expected = [["of which " + name, f"{duration} ms"] for name, duration in stages]

    def shown() -> list[list[str]]:
        lines = page.locator("#facts div").all_inner_texts()[2:]
        return [[line.partition(",")[0], line.partition("\n")[2]] for line in lines]

    until(lambda: shown() == expected)


def test_a_changed_value_predicts_again(page: Page, service: Service, customer: dict[str, Any]) -> None:
    predict(page)
    page.locator("#probability").wait_for()
    page.get_by_label("Transactions", exact=True).fill("20")
    page.get_by_label("Card", exact=True).select_option("Gold")
    changed = probability(service, {**customer, "Total_Trans_Ct": 20, "Card_Category": "Gold"})
    until(lambda: text(page, "#probability") == changed)
    assert "It was" in text(page, "#change")


def test_every_fault_is_at_its_field(page: Page, service: Service, customer: dict[str, Any]) -> None:
    faulty = {**customer, "Customer_Age": 200, "Credit_Limit": -1, "Months_on_book": 1.5}
    del faulty["Total_Trans_Ct"]
    for name in ("Customer_Age", "Credit_Limit", "Months_on_book", "Total_Trans_Ct"):
        page.locator(f"#f-{name}").fill(str(faulty.get(name, "")))
    predict(page)
    page.locator("#e-f-Customer_Age").wait_for()
    assert page.locator("#brief").text_content() == ""
    errors = service.post(faulty).json()["errors"]
    expected = {error["pointer"]: error["message"] for error in errors}
    assert expected.keys() >= {"#/Months_on_book", "#/Total_Trans_Ct"}
    expected |= {"#/Months_on_book": "Enter a whole number", "#/Total_Trans_Ct": "Enter a value"}
    shown = {name: text(page, f"#e-f-{name}") for name in customer}
    assert {f"#/{name}": message for name, message in shown.items() if message} == expected
    assert page.evaluate("document.activeElement.id") == "f-Customer_Age"
    page.get_by_role("button", name="Reset").click()
    predict(page)
    until(lambda: text(page, "#probability") == probability(service, customer))
    assert page.locator("[aria-invalid]").count() == 0


def test_a_full_queue_is_explained_and_tried_again(page: Page, service: Service, customer: dict[str, Any]) -> None:
    expected, accepted = probability(service, customer), list[str]()

    def is_full() -> bool:
        response = service.post(customer)
        accepted.extend(response.json().get("task_id", "") for _ in range(response.status_code == 202))
        return response.status_code == 429

    with service.worker.paused():
        until(is_full)
        predict(page)
        until(lambda: "Too many customers wait to be predicted. Trying again" in text(page, "#waiting-text"))
        assert text(page, "#said") == ""
    until(lambda: text(page, "#probability") == expected)
    for task_id in accepted:
        service.ended(task_id)


def test_a_waiting_prediction_can_be_cancelled(page: Page, service: Service) -> None:
    with service.worker.paused():
        with page.expect_response("**/churn/predict*") as response:
            predict(page)
        task_id = response.value.json()["task_id"]
        until(lambda: "Its place is 1 at most" in text(page, "#waiting-text"))
        page.get_by_role("button", name="Cancel").click()
        until(lambda: service.result(task_id).status_code == 410)
    assert page.locator("#said").inner_text() == "Cancelled."
    assert not page.locator("#waiting").is_visible()


def test_the_page_survives_a_restart_of_the_api(page: Page, service: Service, customer: dict[str, Any]) -> None:
    service.api.stop()
    until(lambda: text(page, "#state-text") == "No answer")
    predict(page)
    until(lambda: "does not answer" in text(page, "#waiting-text"))
    service.api.start()
    service.await_answer("/readyz", service.api)
    until(lambda: text(page, "#probability") == probability(service, customer))
    until(lambda: text(page, "#state-text") == "Ready")


def test_a_frozen_api_is_noticed(page: Page, service: Service, customer: dict[str, Any]) -> None:
    predict(page)
    page.locator("#probability").wait_for()
    until(lambda: text(page, "#state-text") == "Ready")
    with service.api.paused():
        page.get_by_label("Transactions", exact=True).fill("20")
        until(lambda: text(page, "#waiting-text") == "The API has not answered yet.")
        assert page.locator("#answer").evaluate("one => getComputedStyle(one).opacity") == "0.5"
        page.get_by_role("button", name="Cancel").click()
        until(lambda: text(page, "#said") == "Cancelled.")
        predict(page)
        page.get_by_role("link", name="Service", exact=True).click()
        until(lambda: "does not answer" in text(page, "#ready-text"), within_s=20)
        assert "are those of" in text(page, "#ready-text")
        assert page.locator("#live").evaluate("one => getComputedStyle(one).opacity") == "0.5"
        assert text(page, "#state-text") == "No answer"
    until(lambda: text(page, "#state-text") == "Ready")
    assert page.locator("#live").evaluate("one => getComputedStyle(one).opacity") == "1"
    page.get_by_role("link", name="One prediction").click()
    until(lambda: text(page, "#probability") == probability(service, {**customer, "Total_Trans_Ct": 20}))


@pytest.mark.parametrize("typed", ["1e400", "e"])
def test_a_text_that_is_no_number_is_named_at_its_field(page: Page, typed: str) -> None:
    for name in ("Credit_Limit", "Total_Trans_Ct"):
        page.locator(f"#f-{name}").fill("")
        page.locator(f"#f-{name}").press_sequentially(typed)
    predict(page)
    until(lambda: text(page, "#e-f-Credit_Limit") == "Enter a number")
    assert text(page, "#e-f-Total_Trans_Ct") == "Enter a whole number"


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_no_hint_covers_a_control(page: Page, service: Service, customer: dict[str, Any], width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(reduced_motion="reduce")  # a field with the focus is in view at once
    until(lambda: "Training data" in (page.locator("#h-f-Months_Inactive_12_mon").text_content() or ""))
    for name in customer:
        page.locator(f"#f-{name}").focus()
        assert page.evaluate(
            """() => {
              const isUncovered = (one) => {
                const { left, top, width, height } = one.getBoundingClientRect();
                return document.elementFromPoint(left + width / 2, top + height / 2) === one;
              };
              const button = document.querySelector("#form button");
              const isFieldUncovered = isUncovered(document.activeElement);
              const { top } = button.getBoundingClientRect();
              button.focus({ preventScroll: true }); // as a press does before it is a click
              return isFieldUncovered && button.getBoundingClientRect().top === top;
            }"""
        ), name
    page.locator("#f-Months_Inactive_12_mon").focus()
    meaning = "Inactive months. Months without activity in the last 12."
    assert text(page, "#hint") == f"{meaning} Allowed: 0 to 12. Training data: 0 to 6."
    page.get_by_role("button", name="Predict").click()
    until(lambda: text(page, "#probability") == probability(service, customer))


def test_a_value_outside_the_training_data_has_its_hint(page: Page) -> None:
    hint = page.locator("#h-f-Dependent_count")
    until(lambda: "Training data: 0 to 5." in (hint.text_content() or ""))
    assert not hint.is_visible()
    page.locator("#f-Dependent_count").fill("30")
    hint.wait_for()
    assert hint.inner_text() == "Dependents. Allowed: 0 to 50. Training data: 0 to 5."


def test_an_unknown_end_of_the_address_shows_the_first_view(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/#content")
    page.reload()
    page.get_by_role("button", name="Predict").wait_for()


def test_the_form_works_with_the_keyboard(page: Page, service: Service, customer: dict[str, Any]) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.locator("#f-Customer_Age").focus()
    page.keyboard.press("Enter")
    until(lambda: text(page, "#probability") == probability(service, customer))


# Many customers


def test_a_dropped_file_is_scored_and_downloaded(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"Name": f"customer {n}", "Note": SCRIPT, **customer, "Total_Trans_Ct": 10 + n % 90} for n in range(3_000)]
    rows[1]["Note"] = FORMULA
    rows[2]["Customer_Age"] = "old"
    content = as_csv(rows)
    page.get_by_role("link", name="A whole file").click()
    page.locator("#drop").wait_for()
    page.evaluate(
        """content => {
          const carried = new DataTransfer();
          carried.items.add(new File([content], "customers.csv"));
          document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
        }""",
        content,
    )
    page.locator("#score:enabled").wait_for()
    assert "3,000" in text(page, "#found")
    assert "19 of 19" in text(page, "#found")
    page.evaluate(
        """() => {
          const send = XMLHttpRequest.prototype.send;
          XMLHttpRequest.prototype.send = function (body) { window.sent = body; send.call(this, body); };
        }"""
    )
    page.locator("#score").click()
    found = scored(page, tmp_path)
    results = {row["row"]: row["probability"] for row in service.batch_rows(batch_url(page, service))}
    assert {n: float(row["churn_probability"]) for n, row in enumerate(found) if row["churn_probability"]} == results
    assert [n for n, row in enumerate(found) if row["churn_error"]] == [2]
    assert [row["Name"] for row in found] == [row["Name"] for row in rows]
    assert (found[0]["Note"], found[1]["Note"]) == (SCRIPT, f"'{FORMULA}")
    assert found[2]["churn_error"] == "Customer_Age: Enter a whole number"
    assert re.search(r"\b4\b.*Customer_Age.*whole number", text(page, "#refused-rows"))
    assert page.locator("#top tbody tr").count() == 20
    assert SCRIPT in text(page, "#top")
    assert page.title() == "Churn predictions"
    header = page.evaluate("window.sent.text()").splitlines()[0]
    assert header == ",".join(["#", *customer])  # no other column leaves the computer


@pytest.mark.skipif(not DATA.exists(), reason="needs DATA=path/to/BankChurners.csv")
def test_the_real_file_has_the_results_of_the_api(page: Page, service: Service, tmp_path: Path) -> None:
    choose(page, DATA)
    page.locator("#score").click()
    found = scored(page, tmp_path)
    url = service.batch_url(service.post_batch(DATA.read_bytes()))
    service.batch_ended(url)
    assert [float(row["churn_probability"]) for row in found] == [row["probability"] for row in service.batch_rows(url)]
    with DATA.open(newline="") as file:
        assert [row["CLIENTNUM"] for row in found] == [row["CLIENTNUM"] for row in csv.DictReader(file)]


def test_two_tabs_do_not_disturb_each_other(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    tabs = {3: page, 5: other}
    with service.worker.paused():
        for count, tab in tabs.items():
            choose(tab, write(tmp_path, [customer] * count))
            tab.locator("#score").click()
            tab.wait_for_url("**/#file/*")
    for count, tab in tabs.items():
        tab.locator("#download").wait_for()
        assert text(tab, "#size") == f"{count} rows scored"
        assert len(service.batch_rows(batch_url(tab, service))) == count


def test_the_threshold_moves_the_share(page: Page, service: Service, customer: dict[str, Any], tmp_path: Path) -> None:
    choose(page, write(tmp_path, [{**customer, "Total_Trans_Ct": count} for count in range(10, 100)]))
    page.locator("#score").click()
    page.locator("#download").wait_for()
    found = [row["probability"] for row in service.batch_rows(batch_url(page, service))]
    for threshold in (10, 60):
        page.get_by_label("Threshold").fill(str(threshold / 100))
        above = [one for one in found if one >= threshold / 100]
        shown = page.locator("#share dd:nth-child(2)").all_inner_texts()
        assert shown[:2] == [str(len(above)), cases(above)]
    assert page.locator("#histogram rect").count() == 20


def test_few_cases_have_a_decimal_and_refused_rows_are_no_part_of_the_share(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{**customer, "Total_Trans_Ct": count} for count in (10, 20, 30, -1)]
    choose(page, write(tmp_path, rows))
    page.locator("#score").focus()
    page.keyboard.press("Enter")
    page.locator("#download").wait_for()
    assert page.evaluate("document.activeElement.id") == "name"  # not the body, where a keyboard starts again
    found = [row["probability"] for row in service.batch_rows(batch_url(page, service))]
    page.get_by_label("Threshold").fill("0")
    shown = page.locator("#share dd").all_inner_texts()
    assert len(found) == 3
    assert shown[:3] == ["3", "100\u00a0% of the scored rows", cases(found)]
    assert page.get_by_role("table", name="Highest probabilities").is_visible()


def test_rows_have_the_same_lines_after_a_reload(page: Page, customer: dict[str, Any], tmp_path: Path) -> None:
    choose(page, write(tmp_path, [{**customer, "Total_Trans_Ct": count} for count in range(10, 100)]))
    page.locator("#score").click()
    page.locator("#download").wait_for()
    lines = page.locator("#top td:nth-child(2)").all_inner_texts()
    url = page.url
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    assert (page.url, page.evaluate("document.activeElement.id")) == (url, "content")
    page.reload()
    page.locator("#join").wait_for()
    assert page.locator("#top td:nth-child(2)").all_inner_texts() == lines
    assert [int(row["line"]) - int(row["row"]) for row in scored(page, tmp_path)] == [2] * 90
    assert "row is the number of the row sent, from 0" in text(page, "#join")


def test_a_batch_whose_results_were_cut_off_can_be_fetched_again(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    choose(page, write(tmp_path, [customer] * 3))
    page.route("**/results", lambda route: route.fulfill(body='{"row": 0, "probability": 0.5}\n'))
    page.locator("#score").click()
    until(lambda: text(page, "#file-fault") == "The connection to the API was lost.")
    assert service.batch(batch_url(page, service)).status_code == 200
    page.unroute("**/results")
    page.get_by_role("button", name="Try again").click()
    until(lambda: text(page, "#size") == "3 rows scored")


def test_columns_are_recognised_before_anything_is_sent(page: Page, customer: dict[str, Any], tmp_path: Path) -> None:
    row = {name.lower().replace("_", " "): value for name, value in customer.items() if name != "Customer_Age"}
    page.get_by_role("link", name="A whole file").click()
    page.locator("#drop").wait_for()
    page.locator("#file").set_input_files(write(tmp_path, [{**row, "Branch": "x"}]))
    until(lambda: "lacks Customer_Age" in text(page, "#file-fault"))
    assert "18 of 19" in text(page, "#found")
    assert text(page, "#others") == "Not sent: Branch"
    assert page.locator("#score").is_disabled()
    semicolons = tmp_path / "excel.csv"
    values = [str(value).replace(".", ",") for value in customer.values()]
    semicolons.write_text(f"sep=;\r\n{';'.join(customer)}\r\n\r\n{';'.join(values)}\r\n", encoding="utf-16")
    page.locator("#file").set_input_files(semicolons)
    page.locator("#score:enabled").wait_for()
    assert text(page, "#score") == "Score 1 row"
    page.locator("#score").click()
    page.locator("#download").wait_for()


def test_a_file_that_the_api_refuses_is_refused_before_it_is_sent(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    header, row = as_csv([customer]).splitlines()
    files = {
        f"Customer_Age,{header}\n44,{row}\n": "Columns 1 and 2 of the header are both Customer_Age: delete one",
        "": "The file is empty, or has no header",
        "PK\x03\x04\0\0": "This is not a file of text.",
        f"{row}\n{row}\n": "The first line has no name of a feature.",
        f"{header}\n{row},{'x' * 66_000}\n": "The row at line 2 is longer than 65,536 characters",
        f"{header}\n{row}\n{row},x\n": "Line 3 has more cells than the header",
        f'{header}\n"4"5{row.removeprefix("45")}\n': "The row at line 2 has text after a closing quote",
        f'{header}\n{row}\n"{row}\n': "The quote of the row at line 3 is not closed.",
        f"{header},Name\n" + f"{row},Ann\n" * 20 + f"{row},Zo\xeb\n": "Line 22 is not UTF-8.",
    }
    page.get_by_role("link", name="A whole file").click()
    page.locator("#drop").wait_for()
    for number, (content, fault) in enumerate(files.items()):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(content.encode("latin-1"))
        assert service.post_batch(path.read_bytes()).json()["type"] == "/problems/malformed-batch", fault
        page.locator("#file").set_input_files(path)
        until(lambda fault=fault: fault in text(page, "#file-fault"))  # type: ignore[misc]
        assert not page.locator("#score:enabled").is_visible()


def test_each_end_of_a_line_is_accepted(page: Page, service: Service, customer: dict[str, Any], tmp_path: Path) -> None:
    header, row = as_csv([customer]).splitlines()
    path = tmp_path / "macintosh.csv"
    note = f'"{"two" * 9_000}\r\nlines"'
    path.write_bytes("\r".join([f"{header},Note", *[f"{row},{note}"] * 3, f"{row}\r\n{row}\n{row}", ""]).encode())
    assert service.post_batch(path.read_bytes()).json()["total"] == 6
    choose(page, path)
    assert text(page, "#score") == "Score 6 rows"
    page.locator("#score").click()
    page.locator("#download").wait_for()
    assert page.locator("#top td:nth-child(2)").all_inner_texts() == ["2", "4", "6", "8", "9", "10"]
    assert scored(page, tmp_path)[2]["Note"] == "two" * 9_000 + "\r\nlines"


def test_the_end_of_a_batch_is_explained(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    for end, reason in (("0" * 8, "does not know this batch"), ("..", "not the id of a batch")):
        page.goto(f"{service.url}/#file/{end}")
        until(lambda reason=reason: reason in text(page, "#file-fault"))  # type: ignore[misc]
        page.wait_for_url("**/#file")
    choose(page, write(tmp_path, [customer] * 3))
    with service.worker.paused():
        page.locator("#score").click()
        service.delete_batch(batch_url(page, service))
        until(lambda: "was cancelled or erased elsewhere" in text(page, "#file-fault"))
    page.wait_for_url("**/#file")


def test_a_running_batch_is_found_after_a_reload(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path, [{"Name": n, **customer, "Total_Trans_Ct": 10 + n} for n in range(90)])
    choose(page, path)
    with service.worker.paused():
        page.locator("#score").click()
        until(lambda: "Scored 0 of 90" in text(page, "#run-text"))
        page.reload()
        until(lambda: "Scored 0 of 90" in text(page, "#run-text"))
    page.locator("#join").wait_for()
    page.locator("#file").set_input_files(path.rename(tmp_path / "other.csv"))
    until(lambda: text(page, "#file-fault") == "This is another file: choose customers.csv with 90 rows.")
    assert (text(page, "#name"), text(page, "#size")) == ("customers.csv", "90 rows scored")
    page.locator("#file").set_input_files((tmp_path / "other.csv").rename(path))
    page.locator("#join").wait_for(state="hidden")
    assert (text(page, "#name"), text(page, "#size")) == ("customers.csv", "90 rows scored")
    found = scored(page, tmp_path)
    results = service.batch_rows(batch_url(page, service))
    assert [float(row["churn_probability"]) for row in found] == [row["probability"] for row in results]
    assert [row["Name"] for row in found] == [str(n) for n in range(90)]


def test_a_running_batch_can_be_cancelled(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    choose(page, write(tmp_path, [customer] * 50))
    with service.worker.paused():
        page.locator("#score").click()
        url = batch_url(page, service)
        page.get_by_role("button", name="Cancel").click()
        until(lambda: service.batch(url).status_code == 410)
    assert "Cancelled" in text(page, "#file-fault")
    page.wait_for_url("**/#file")


def test_a_file_without_a_valid_row_is_refused_with_every_fault(
    page: Page, customer: dict[str, Any], tmp_path: Path
) -> None:
    choose(page, write(tmp_path, [{**customer, "Gender": "X", "Customer_Age": 7}] * 3))
    page.locator("#score").click()
    until(lambda: "no row or nearly none is valid" in text(page, "#file-fault"))
    assert text(page, "#refused-text") == "3 refused rows"
    faults = page.locator("#refused-rows tbody tr").all_inner_texts()
    assert [fault.split("\t")[:2] for fault in faults[:2]] == [["2", "Customer_Age"], ["2", "Gender"]]
    assert len(faults) == 6
    assert page.locator("#score").is_enabled()


def test_a_large_file_keeps_the_page_responsive(
    page: Page, service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    lines = as_csv([{**customer, "Total_Trans_Ct": 10 + n} for n in range(100)]).splitlines(keepends=True)
    path = tmp_path / "large.csv"
    path.write_text(lines[0] + "".join(lines[1:]) * 2_000)
    page.evaluate(
        """() => {
          window.longest = 0;
          new PerformanceObserver(list => {
            for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
          }).observe({ type: "longtask" });
        }"""
    )
    choose(page, path)
    assert text(page, "#score") == "Score 200,000 rows"
    page.locator("#score").click()
    page.locator("#download").wait_for(timeout=120_000)
    assert "200,000 rows scored" in text(page, "#size")
    assert page.evaluate("window.longest") < 1_000
    assert page.locator("tr").count() < 300
    service.delete_batch(batch_url(page, service))


# The service, keys, another model


def test_the_service_is_shown_live(page: Page, service: Service) -> None:
    page.get_by_role("link", name="Service", exact=True).click()
    until(lambda: "1 of 1" in text(page, "#parts"))
    version = service.get("/churn/model").json()["version"]
    assert version in text(page, "#workers")
    until(lambda: version in text(page, "#card"))
    assert "Not for credit decisions" in text(page, "#card")


def test_a_key_is_asked_for_and_kept_in_memory_only(browser: Browser, servers: Servers, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"the-key").hexdigest()
    with (
        running_api(servers, tmp_path, API_KEYS=digest) as api,
        opened_page(browser, f"{api.url}/") as page,
    ):
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        page.get_by_label("Key", exact=True).fill("\u043a\u043b\u044e\u0447")  # no header can have it
        page.keyboard.press("Enter")
        until(lambda: "only letters of western languages" in text(page, "#key-fault"))
        for key, is_right in (("wrong", False), ("the-key", True)):
            dialog.wait_for()
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
            if is_right:
                dialog.wait_for(state="hidden")
            else:
                until(lambda: "does not know" in text(page, "#key-fault"))
        page.get_by_role("link", name="Service", exact=True).click()
        until(lambda: "The model: churn" in text(page, "#card"))  # of the worker on the same servers
        assert "the-key" not in page.url + page.evaluate(
            "JSON.stringify([localStorage, sessionStorage, document.cookie])"
        )
        page.reload()
        dialog.wait_for()


def test_a_batch_keeps_its_address_without_a_key(
    browser: Browser, servers: Servers, tmp_path: Path, service: Service, customer: dict[str, Any]
) -> None:
    digest = hashlib.sha256(b"the-key").hexdigest()
    with running_api(servers, tmp_path, API_KEYS=digest) as api, opened_page(browser, f"{api.url}/livez") as page:
        headers = {"Content-Type": "text/csv", "Authorization": "Bearer the-key"}
        response = api.request("POST", "/churn/batches", data=as_csv([customer] * 3), headers=headers)
        batch_id = response.json()["batch_id"]
        page.goto(f"{api.url}/#file/{batch_id}")
        page.get_by_role("dialog").wait_for()

        def is_refused() -> bool:
            page.keyboard.press("Escape")  # each part of the page may ask
            return text(page, "#file-fault") == "This service asks for a key."

        until(is_refused)
        assert page.url.endswith(f"#file/{batch_id}")
        page.get_by_role("button", name="Try again").click()
        page.get_by_label("Key", exact=True).fill("the-key")
        page.keyboard.press("Enter")
        until(lambda: text(page, "#size") == "3 rows scored")  # by the worker of `service`
        assert page.url.endswith(f"#file/{batch_id}")


def test_the_form_follows_the_customer_of_another_model(
    browser: Browser, servers: Servers, tmp_path: Path, service: Service
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".*", "tests", "notebooks", "benchmarks", "docs", "*.csv")
    )
    own = """class Customer(BaseModel):
    \"\"\"An order in a shop.\"\"\"

    price: float = Field(ge=0, le=1000, allow_inf_nan=False, examples=[19.5])
    is_gift: bool = Field(examples=[False])
    payment: Literal["card", "invoice"] = Field(examples=["invoice"])
    items: int | None = Field(default=None, ge=1, le=99)
"""
    pattern = r"class Customer\(BaseModel\):\n.*?(?=\n\nclass )"
    models, count = re.subn(pattern, lambda _: own, (tree / "models.py").read_text(), flags=re.DOTALL)
    assert count == 1
    (tree / "models.py").write_text(models)
    other = Service(servers, tmp_path, {"PYTHONPATH": str(tree)})
    other.api.command = [*other.api.command[:3], "--app-dir", str(tree), *other.api.command[3:]]
    other.api.start()
    try:
        other.await_answer("/livez", other.api)
        with opened_page(browser, f"{other.url}/") as page:
            page.locator("#fields input").first.wait_for()
            assert page.locator("#fields label").all_inner_texts() == ["Price", "Is Gift", "Payment", "Items"]
            values = page.locator("#fields input, #fields select").evaluate_all("all => all.map(one => one.value)")
            assert values == ["19.5", "false", "invoice", ""]
            assert "An order in a shop." in text(page, "#form")
    finally:
        other.stop()


def test_the_page_works_behind_a_prefix(
    browser: Browser, servers: Servers, tmp_path: Path, service: Service, customer: dict[str, Any]
) -> None:
    with (
        running_api(servers, tmp_path, UVICORN_ROOT_PATH="/ml") as api,
        opened_page(browser, f"{api.url}/livez") as page,
    ):
        # As a proxy that strips the prefix; a request without it would not reach this API.
        page.route("**/*", lambda route: route.abort())
        page.route(f"{api.url}/ml/**", lambda route: route.continue_(url=route.request.url.replace("/ml/", "/", 1)))
        page.goto(f"{api.url}/ml/")
        page.locator("#fields input").first.wait_for()
        predict(page)
        until(lambda: text(page, "#probability") == probability(service, customer))
        choose(page, write(tmp_path, [customer] * 3))
        page.locator("#score").click()
        assert len(scored(page, tmp_path)) == 3
        page.reload()
        until(lambda: text(page, "#size") == "3 rows scored")
        page.get_by_role("link", name="Service", exact=True).click()
        until(lambda: "The model: churn" in text(page, "#card"))
        page.get_by_role("link", name="API documentation").click()
        block = page.locator("#operations-model-get_churn_model")
        block.locator("button.opblock-summary-control").click()
        block.get_by_role("button", name="Try it out").click()
        with page.expect_response("**/churn/model") as response:
            block.get_by_role("button", name="Execute").click()
        assert response.value.status == 200


# Looks and access


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_overflows_and_axe_finds_no_violation(
    browser: Browser, service: Service, customer: dict[str, Any], tmp_path: Path, scheme: Any
) -> None:
    axe = install_axe(tmp_path)
    path = DATA if DATA.exists() else write(tmp_path, as_json_rows(make_table()))
    PICTURES.mkdir(parents=True, exist_ok=True)
    with opened_page(browser, f"{service.url}/", color_scheme=scheme, reduced_motion="reduce") as page:
        for view in ("customer", "file", "service"):
            page.goto(f"{service.url}/#{view}")
            if view == "customer":
                page.locator("#fields input").first.wait_for()
                predict(page)
                page.locator("#probability").wait_for()
            elif view == "file":
                choose(page, path)
                page.locator("#score").click()
                page.locator("#download").wait_for()
            else:
                page.locator("#card-features").wait_for()
            for width in (320, 768, 1280):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.screenshot(path=PICTURES / f"{view}-{width}-{scheme}.png", full_page=True)
            assert (violations(page, axe) if axe else []) == []
    if axe is None:
        pytest.skip("no npm, or it does not answer: axe-core has checked nothing")


def test_no_value_of_a_customer_is_in_the_log(page: Page, service: Service) -> None:
    page.get_by_label("Open to buy, $").fill("31415.9")
    predict(page)
    page.locator("#probability").wait_for()
    assert "31415.9" not in service.api.text()


def test_the_docs_have_no_padlock_without_keys_and_examples_succeed_again(browser: Browser, service: Service) -> None:
    with opened_page(browser, f"{service.url}/docs") as page:
        block = page.locator("#operations-predictions-predict_churn")
        block.locator("button.opblock-summary-control").click()
        assert page.title() == "Churn predictions"
        assert not page.locator(".authorization__btn").first.is_visible()
        assert not page.locator(".authorize").first.is_visible()
        block.get_by_role("button", name="Try it out").click()
        ids = set()
        for _ in range(2):
            with page.expect_response("**/churn/predict*") as response:
                block.get_by_role("button", name="Execute").click()
            assert response.value.status == 202
            ids.add(json.loads(response.value.text())["task_id"])
        assert len(ids) == 2  # no fixed Idempotency-Key
    assert requests.get(f"{service.url}/readyz", timeout=10).ok
