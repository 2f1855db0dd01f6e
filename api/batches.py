"""The routes of batches."""

import csv
import io
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from api.batch_formats import CSV, JSON, NDJSON, InvalidRow, format_end, format_results
from api.customer_schema import describe_customer
from api.http.auth import PathId, issue_id
from api.http.content_headers import read_content_headers
from api.http.parameters import best_media_type
from api.http.paths import public_path
from api.http.problems import ProblemType, problem, problem_responses
from api.http.request_log import add_log_fields
from api.http.responses import NO_STORE, accepted_headers, accepted_responses, model_response
from api.services import get_services
from celery_task_app.errors import RowsRefused
from celery_task_app.store.batches import StoredBatch
from models import AcceptedBatch, Batch, Customer, Fault, RefusedRow

router = APIRouter(tags=["batches"])


def _forms() -> dict[str, Any]:
    """Return the forms of a batch for OpenAPI, each with the example of a customer, which /docs sends."""
    customers = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Customer"}}
    forms: dict[str, Any] = {CSV: {"schema": {"type": "string"}}, NDJSON: {"schema": {"type": "string"}}}
    forms[JSON] = {"schema": customers}
    if example := describe_customer(Customer)["example"]:
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([example, example.values()])
        for form, text in ((CSV, table.getvalue()), (NDJSON, json.dumps(example)), (JSON, [example])):
            forms[form]["example"] = text
    return forms


@router.post(
    "/churn/batches",
    operation_id="create_batch",
    summary="Send a file of customers",
    status_code=HTTPStatus.ACCEPTED,
    response_model=AcceptedBatch,
    responses=accepted_responses(AcceptedBatch, "Accepted")
    | problem_responses(
        ProblemType.MALFORMED_BATCH,
        ProblemType.BODY_TIMEOUT,
        ProblemType.BATCH_TOO_LARGE,
        ProblemType.UNSUPPORTED_ENCODING,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
        ProblemType.BAD_PARAMETER,
        ProblemType.INVALID_ROWS,
        ProblemType.OVERLOADED,
        ProblemType.INTERNAL_ERROR,
        ProblemType.NO_SPACE,
        ProblemType.UNAVAILABLE,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": _forms(),
        }
    },
)
async def accept_batch(request: Request, on_error: Literal["skip", "reject"] = "skip") -> Response:
    """Queue many customers: CSV with a header row, NDJSON, or a JSON array of up to 8 MiB.

    Rows that are not valid customers are named in the response and left out. With `on_error=reject` the whole batch is
    refused instead.
    """
    media_type, _ = read_content_headers(request)
    if media_type not in (CSV, NDJSON, JSON):
        return problem(ProblemType.UNSUPPORTED_MEDIA_TYPE, f"Send {CSV}, {NDJSON} or {JSON}.")
    services = get_services(request)
    receipt = await services.batch_intake.accept(
        issue_id(),
        request.stream(),
        media_type,
        all_or_none=on_error == "reject",
        is_disconnected=request.is_disconnected,
    )
    accepted = AcceptedBatch(
        batch_id=receipt.batch_id,
        total=receipt.total,
        refused=receipt.refused,
        rows=[_refused_row(row) for row in receipt.listed],
    )
    add_log_fields(request, batch_id=receipt.batch_id, customers=receipt.total, refused_rows=receipt.refused)
    location = public_path(request.scope, f"/churn/batches/{receipt.batch_id}")
    headers = accepted_headers(location, services.queue.rows_retry_after_s)
    return model_response(accepted, HTTPStatus.ACCEPTED, headers, exclude_none=True)


@router.get(
    "/churn/batches/{batch_id}",
    operation_id="get_batch",
    summary="See how many rows of a batch are done",
    response_model=Batch,
    responses=NO_STORE
    | accepted_responses(Batch, "Not all computed yet")
    | problem_responses(ProblemType.UNKNOWN_BATCH, ProblemType.BATCH_DELETED, ProblemType.UNAVAILABLE),
)
async def get_batch(batch_id: PathId, request: Request) -> Response:
    """Return the progress of a batch."""
    services = get_services(request)
    stored = await services.batches.find(batch_id)
    if stored is None or stored.is_deleted:
        return _missing_batch(stored)
    progress = Batch(
        batch_id=batch_id,
        status="Success" if stored.is_finished else "Processing",
        total=stored.total,
        done=stored.done,
        failed=stored.failed,
        model_version=stored.model_version,
        model_versions=dict(stored.model_versions),
    )
    if stored.is_finished:
        return model_response(progress, HTTPStatus.OK, {"Cache-Control": "no-store"})
    location = public_path(request.scope, f"/churn/batches/{batch_id}")
    headers = accepted_headers(location, services.queue.rows_retry_after_s)
    return model_response(progress, HTTPStatus.ACCEPTED, headers)


_RESULTS: dict[str, Any] = {media_type: {"schema": {"type": "string"}} for media_type in (NDJSON, CSV)} | {
    JSON: {
        "schema": {
            "type": "array",
            "items": {"type": "object"},
            "examples": [[{"row": 0, "probability": 0.00025044398002870265}]],
        }
    }
}


@router.get(
    "/churn/batches/{batch_id}/results",
    operation_id="get_batch_results",
    summary="Fetch the results of a batch",
    response_class=Response,
    responses={
        HTTPStatus.OK: {"content": _RESULTS, "description": "Every row, in the order sent"},
        HTTPStatus.ACCEPTED: {"content": _RESULTS, "description": "The rows that are finished so far"},
    }
    | problem_responses(
        ProblemType.UNKNOWN_BATCH, ProblemType.NOT_ACCEPTABLE, ProblemType.BATCH_DELETED, ProblemType.UNAVAILABLE
    ),
)
async def get_batch_results(batch_id: PathId, request: Request) -> Response:
    """Fetch the results of the finished rows of a batch, in the order sent, as NDJSON, JSON or CSV (`Accept`)."""
    services = get_services(request)
    media_type = best_media_type(request.headers.get("accept") or "*/*", (NDJSON, JSON, CSV))
    if media_type is None:
        return problem(ProblemType.NOT_ACCEPTABLE, f"Accept {NDJSON}, {JSON} or {CSV}.")
    stored = await services.batches.find(batch_id)
    if stored is None or stored.is_deleted:
        return _missing_batch(stored)

    async def body() -> AsyncIterator[bytes]:
        is_first = True
        async for scored in services.batches.results(batch_id, stored):
            yield format_results(scored, media_type, is_first=is_first)
            is_first = False
        if is_first:
            yield format_results([], media_type, is_first=True)
        yield format_end(media_type)

    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if not stored.is_finished:
        headers["Retry-After"] = str(services.queue.rows_retry_after_s)
    status = HTTPStatus.OK if stored.is_finished else HTTPStatus.ACCEPTED
    if request.scope["http_version"] == "1.0":  # it has no chunked coding, so the length must be known
        return Response(b"".join([part async for part in body()]), status, headers, media_type)
    return StreamingResponse(body(), status, headers, media_type)


@router.delete(
    "/churn/batches/{batch_id}",
    operation_id="delete_batch",
    summary="Cancel a batch, and erase its results",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(ProblemType.UNKNOWN_BATCH, ProblemType.UNAVAILABLE),
)
async def delete_batch(batch_id: PathId, request: Request) -> Response:
    """Cancel the rows of a batch that are not computed yet, and erase its results."""
    if not await get_services(request).batches.delete(batch_id):
        return _missing_batch(None)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def add_batch_exception_handlers(app: FastAPI) -> None:
    """Answer RowsRefused with the rows, which api/http does not know."""
    app.add_exception_handler(RowsRefused, _rows_refused)  # type: ignore[arg-type]  # it takes RowsRefused only


async def _rows_refused(_request: Request, error: RowsRefused) -> Response:
    rows = [_refused_row(row).model_dump(exclude_none=True) for row in error.listed if isinstance(row, InvalidRow)]
    return problem(ProblemType.INVALID_ROWS, f"{error}.", refused=error.count, rows=rows)


def _missing_batch(stored: StoredBatch | None) -> Response:
    if stored is None:
        return problem(ProblemType.UNKNOWN_BATCH, "Send the rows to POST /churn/batches again.")
    return problem(ProblemType.BATCH_DELETED, "Its rows are not computed, and its results are erased.")


def _refused_row(row: InvalidRow) -> RefusedRow:
    """Name each fault of a row, and repeat no value."""
    faults = [
        Fault(pointer="/".join(["#", str(row.row), *filter(None, [place])]), code=code, message=message)
        for place, code, message in row.faults
    ]
    return RefusedRow(row=row.row, line=row.line, errors=faults)
