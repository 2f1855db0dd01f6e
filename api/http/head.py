"""HEAD for every route that has GET (RFC 9110, 9.1): FastAPI's routes answer it with 405."""

from fastapi import FastAPI
from fastapi.routing import APIRoute


def add_head_routes(app: FastAPI) -> None:
    """Add a route for HEAD beside each route for GET; the server sends no body.

    A middleware that changes the method would cost every request a call. The routes are not in OpenAPI.
    """
    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=["HEAD"],
            include_in_schema=False,
            response_model=route.response_model,
            response_model_exclude_none=route.response_model_exclude_none,
        )
