"""Hypothesis without time limits, because a busy machine must not fail a test; with fewer examples than its 100."""

from hypothesis import HealthCheck, settings

settings.register_profile("unit", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")
