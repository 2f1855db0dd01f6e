"""Celery apps for tests: the shipped worker with other time limits or a disturbed start."""
