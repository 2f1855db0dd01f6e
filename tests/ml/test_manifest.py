import json
import os
from pathlib import Path

import pytest

from celery_task_app.errors import ArtifactCorrupt, ArtifactMissing
from celery_task_app.ml.manifest import read_manifest


def test_the_manifest_is_read_again_when_it_was_changed(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "new").write_text(json.dumps({"version": version}))
        os.utime(tmp_path / "new", ns=(0, int(version)))
        (tmp_path / "new").replace(tmp_path / "mine.json")
        assert read_manifest(tmp_path / "mine.joblib") == {"version": version}


def test_a_model_may_have_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"No manifest at .*mine\.json"):
        read_manifest(tmp_path / "mine.joblib")


@pytest.mark.parametrize("content", [b'{"version": ', b"[1]", b"\xff", b"null"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"mine\.json is damaged"):
        read_manifest(tmp_path / "mine.joblib")
