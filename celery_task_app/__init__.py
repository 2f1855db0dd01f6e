"""Churn predictions through a durable queue: what the API and the worker share, and the worker itself."""
