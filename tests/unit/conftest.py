"""Hypothesis without time limits, because a busy machine must not fail a test; CI tries more examples than a laptop."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = 100 if os.environ.get("REQUIRE_SERVICES") == "1" else 25  # .ci/run sets it

settings.register_profile("unit", deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")
