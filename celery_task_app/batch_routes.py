"""The routes of batches: which outcome is which answer. What an outcome is, intake.py and batches.py know."""

from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from celery_task_app.access import Id, new_id
from celery_task_app.answers import NOT_STORED, RETRY_AFTER_S, later, later_at
from celery_task_app.errors import RowsRefused
from celery_task_app.problems import Fault, documented, problem
from celery_task_app.rows import CSV, JSON, NDJSON, Refused, end, written
from models import AcceptedBatch, Batch, RefusedRow

router = APIRouter()


def add_batches(app: FastAPI) -> None:
    """Let the app take batches; its state has `intake` and `batches` when it serves."""
    app.routes.extend(router.routes)  # as its own: of an included router the app does not know the methods
    app.add_exception_handler(RowsRefused, _rows_refused)  # type: ignore[arg-type]  # it takes its own errors
    app.add_exception_handler(ClientDisconnect, _incomplete)


@router.post(
    "/churn/batches",
    operation_id="create_batch",
    tags=["batches"],
    status_code=HTTPStatus.ACCEPTED,
    response_model=AcceptedBatch,
    responses=later(AcceptedBatch, "Accepted")
    | documented(
        "malformed-batch",
        "batch-too-large",
        "unsupported-media-type",
        "invalid-rows",
        "overloaded",
        "internal-error",
        "unavailable",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                CSV: {"schema": {"type": "string"}},
                JSON: {"schema": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Customer"}}},
            },
        }
    },
)
async def accept_batch(request: Request, on_error: Literal["skip", "reject"] = "skip") -> Response:
    """Queue many customers: CSV with a header row, or a JSON array.

    Rows that are not customers are named and left out, or with `on_error=reject` the whole is refused.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (CSV, JSON):
        return problem("unsupported-media-type", f"Send {CSV} or {JSON}.")
    all_or_none = on_error == "reject"
    taken = await request.app.state.intake.take(new_id(), request.stream(), media_type, all_or_none=all_or_none)
    body = AcceptedBatch(
        batch_id=taken.batch_id, total=taken.total, refused=taken.refused, rows=[_refused(row) for row in taken.listed]
    )
    headers = later_at(f"/churn/batches/{taken.batch_id}")
    return Response(body.model_dump_json(exclude_none=True), HTTPStatus.ACCEPTED, headers, "application/json")


@router.get(
    "/churn/batches/{batch_id}",
    operation_id="get_batch",
    tags=["batches"],
    response_model=Batch,
    responses=NOT_STORED
    | later(Batch, "Not all computed yet")
    | documented("unknown-batch", "batch-deleted", "unavailable"),
)
async def batch(batch_id: Id, request: Request) -> Response:
    """Say how far a batch is."""
    known = await request.app.state.batches.find(batch_id)
    if known is None or known.deleted:
        return _no_batch(known)
    body = Batch(
        batch_id=batch_id,
        status="Success" if known.ended else "Processing",
        total=known.total,
        done=known.done,
        failed=known.failed,
        model_version=known.model_version,
    ).model_dump_json()
    if known.ended:
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
    return Response(body, HTTPStatus.ACCEPTED, later_at(f"/churn/batches/{batch_id}"), "application/json")


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
    tags=["batches"],
    response_class=Response,
    responses={
        HTTPStatus.OK: {"content": _RESULTS, "description": "Every row, in the order sent"},
        HTTPStatus.ACCEPTED: {"content": _RESULTS, "description": "The rows that are there"},
    }
    | documented("unknown-batch", "not-acceptable", "batch-deleted", "unavailable"),
)
async def batch_results(batch_id: Id, request: Request) -> Response:
    """Fetch a batch's results in the order sent, as NDJSON, JSON or CSV (`Accept`); those that are there so far."""
    media_type = _best(request.headers.get("accept") or "*/*", (NDJSON, JSON, CSV))
    if media_type is None:
        return problem("not-acceptable", f"Accept {NDJSON}, {JSON} or {CSV}.")
    known = await request.app.state.batches.find(batch_id)
    if known is None or known.deleted:
        return _no_batch(known)

    async def body() -> AsyncIterator[bytes]:
        first = True
        async for scored in request.app.state.batches.results(batch_id, known):
            yield written(scored, media_type, first=first)
            first = False
        if first:
            yield written([], media_type, first=True)
        yield end(media_type)

    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if not known.ended:
        headers["Retry-After"] = RETRY_AFTER_S
    return StreamingResponse(body(), HTTPStatus.OK if known.ended else HTTPStatus.ACCEPTED, headers, media_type)


@router.delete(
    "/churn/batches/{batch_id}",
    operation_id="delete_batch",
    tags=["batches"],
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented("unknown-batch", "unavailable"),
)
async def delete_batch(batch_id: Id, request: Request) -> Response:
    """Cancel what a batch still waits for, and erase its results."""
    if not await request.app.state.batches.delete(batch_id):
        return _no_batch(None)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _no_batch(known: object) -> Response:
    if known is None:
        return problem("unknown-batch", "A batch's id is a UUID, as POST /churn/batches answers it.")
    return problem("batch-deleted", "Its rows are not computed, and its results are erased.")


def _refused(row: Refused) -> RefusedRow:
    """Name each fault of a row, and repeat no value."""
    faults = [
        Fault(pointer="/".join(["#", str(row.row), *filter(None, [place])]), code=code, message=message)
        for place, code, message in row.faults
    ]
    return RefusedRow(row=row.row, line=row.line, errors=faults)


def _best(accept: str, offered: Sequence[str]) -> str | None:
    """Return which of the media types the client likes best; None if it takes none (RFC 9110, 12.5.1)."""
    wanted: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            wanted[name] = float(quality)
        except ValueError:
            wanted[name] = 0.0

    def liked(media_type: str) -> float:
        ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
        return next((wanted[name] for name in ranges if name in wanted), 0.0)

    best = max(offered, key=liked)
    return best if liked(best) > 0 else None


async def _rows_refused(_request: Request, error: RowsRefused) -> Response:
    rows = [_refused(row).model_dump(exclude_none=True) for row in error.listed if isinstance(row, Refused)]
    return problem("invalid-rows", f"{error}.", refused=error.count, rows=rows)


async def _incomplete(_request: Request, _error: Exception) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody hears it: the client went before its batch had ended
