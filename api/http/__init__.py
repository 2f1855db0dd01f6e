"""Plumbing around FastAPI: problems, headers, authentication, OpenAPI. It calls no service but reads their limits."""
