"""Measurements of the running service, and the figures that the README quotes. Nothing here is imported by it."""
