"""Measurements of the running service. Nothing here is imported by the service."""
