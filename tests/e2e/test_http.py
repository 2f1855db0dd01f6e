"""The API's log of an error. tests/unit/test_app.py has the routes, tests/e2e/test_prefix.py the access log."""

from pathlib import Path

import pytest

from api.http.problems import ProblemType
from tests.harness.assertions import assert_problem
from tests.harness.servers import Servers
from tests.harness.service import running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


def test_a_damaged_manifest_is_500_and_named_in_the_log(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"name": "mine"')
    with running_api(servers, tmp_path, MODEL_PATH=str(tmp_path / "mine.joblib")) as api:
        assert_problem(api.get("/churn/model"), ProblemType.INTERNAL_ERROR)
    assert "ArtifactCorrupt: Manifest" in api.api.text()
