import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest

from celery_task_app.errors import ArtifactCorrupt, ArtifactMissing, VersionMismatch
from celery_task_app.ml.artifact import Artifact, check_artifact, load_artifact, read_manifest
from celery_task_app.ml.model import ChurnModel
from tests.conftest import MANIFEST

Opener = Callable[[Path], Artifact | ChurnModel]


def load(path: Path) -> Artifact:
    return load_artifact(path)[0]


@pytest.fixture(params=[check_artifact, load, ChurnModel])
def opened(request: pytest.FixtureRequest) -> Opener:
    """Every way to open a model file; all refuse the same files."""
    opener: Opener = request.param
    return opener


def edit_manifest(artifact: Path, **changes: object) -> None:
    path = artifact.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# The manifest


def test_the_manifest_of_the_shipped_model_is_returned(shipped: Path) -> None:
    assert read_manifest(shipped) == MANIFEST


def test_a_modified_manifest_is_read_again(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "new").write_text(json.dumps({"version": version}))
        os.utime(tmp_path / "new", ns=(0, int(version)))
        (tmp_path / "new").replace(tmp_path / "mine.json")
        assert read_manifest(tmp_path / "mine.joblib") == {"version": version}


def test_a_missing_manifest_is_artifact_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"No manifest at .*mine\.json"):
        read_manifest(tmp_path / "mine.joblib")


@pytest.mark.parametrize("content", [b'{"version": ', b"[1]", b"[]", b"\xff", b"null"])
def test_a_damaged_manifest_is_artifact_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.json").write_bytes(content)

    with pytest.raises(ArtifactCorrupt, match=r"mine\.json is damaged"):
        read_manifest(tmp_path / "mine.joblib")


# Checks before unpickling


def test_the_artifact_has_the_facts_of_the_manifest(shipped: Path) -> None:
    artifact = check_artifact(shipped)

    assert (artifact.name, artifact.version) == (MANIFEST["name"], MANIFEST["version"])
    assert [(name, feature.type) for name, feature in artifact.features.items()] == [
        (feature["name"], feature["type"]) for feature in MANIFEST["features"]
    ]
    assert [row._asdict() for row in artifact.golden] == MANIFEST["golden"]
    assert artifact.explains is True


def test_name_and_version_are_those_of_the_manifest(opened: Opener, artifact: Path) -> None:
    edit_manifest(artifact, name="loyalty", version="2.1")

    assert (opened(artifact).name, opened(artifact).version) == ("loyalty", "2.1")


def test_the_card_is_the_manifest_without_customers(shipped: Path) -> None:
    card = check_artifact(shipped).card
    assert card == {name: value for name, value in MANIFEST.items() if name != "golden"}


def test_the_card_of_a_model_without_a_manifest_has_its_version_and_digest(tmp_path: Path) -> None:
    (tmp_path / "mine.joblib").write_bytes(b"a model")
    sha256 = hashlib.sha256(b"a model").hexdigest()
    card = {"name": "mine", "version": sha256[:12], "sha256": sha256, "features": []}
    assert check_artifact(tmp_path / "mine.joblib").card == card


def test_a_missing_model_is_artifact_missing(opened: Opener, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"nowhere\.joblib.*make train.*MODEL_PATH"):
        opened(tmp_path / "nowhere.joblib")


def test_a_folder_is_artifact_corrupt(opened: Opener, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="MODEL_PATH"):
        opened(tmp_path)


def test_a_truncated_model_is_artifact_corrupt(opened: Opener, artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:-100])

    with pytest.raises(ArtifactCorrupt, match=r"churn\.json describes"):
        opened(artifact)


def test_a_modified_model_is_not_unpickled(opened: Opener, artifact: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "attacked",))

    joblib.dump(Attack(), artifact)

    with pytest.raises(ArtifactCorrupt):
        opened(artifact)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", "null", "\xff"])
def test_a_model_with_a_damaged_manifest_is_artifact_corrupt(opened: Opener, artifact: Path, manifest: str) -> None:
    artifact.with_suffix(".json").write_text(manifest, encoding="latin-1")

    with pytest.raises(ArtifactCorrupt, match=r"churn\.json is damaged"):
        opened(artifact)


@pytest.mark.parametrize("golden", [7, [7], [{"customer": {}}], [{"customer": {}, "probability": None}]])
def test_malformed_golden_rows_are_artifact_corrupt(opened: Opener, artifact: Path, golden: object) -> None:
    edit_manifest(artifact, golden=golden)

    with pytest.raises(ArtifactCorrupt, match=r"churn\.json is damaged"):
        opened(artifact)


@pytest.mark.parametrize("library", ["scikit-learn", "lightgbm"])
def test_another_version_of_a_library_is_a_version_mismatch(opened: Opener, artifact: Path, library: str) -> None:
    edit_manifest(artifact, libraries={library: "0.1"})

    with pytest.raises(VersionMismatch, match=rf"{library} 0\.1.*requirements\.txt"):
        opened(artifact)


def test_a_library_that_the_manifest_does_not_name_may_have_any_version(opened: Opener, artifact: Path) -> None:
    edit_manifest(artifact, libraries={"python": "3.0"})

    assert opened(artifact).name == "churn"


# Unpickling


def test_load_artifact_returns_the_pipeline(trained: Path) -> None:
    artifact, pipeline = load_artifact(trained / "churn.joblib")

    assert artifact == check_artifact(trained / "churn.joblib")
    assert list(pipeline.feature_names_in_) == list(artifact.features)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x05X\xff\x00\x00\x00abc", b"cnowhere\nNothing\n."])
def test_a_file_that_cannot_be_unpickled_is_artifact_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.joblib"
    path.write_bytes(content)

    with pytest.raises(ArtifactCorrupt, match=r"mine\.joblib can't be unpickled"):
        load_artifact(path)


@pytest.mark.parametrize(
    ("content", "way_out"),
    [
        (b"cno_such_library\nModel\n.", "install no_such_library for the worker"),
        (b"c__main__\nNoSuchModel\n.", "move the class into a module"),
    ],
)
def test_an_error_names_the_missing_library_or_the_class_of_a_program(
    tmp_path: Path, content: bytes, way_out: str
) -> None:
    (tmp_path / "churn.joblib").write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=way_out):
        load_artifact(tmp_path / "churn.joblib")


def test_an_object_without_predict_proba_is_artifact_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "mine.joblib"
    joblib.dump({"a": "dictionary"}, path)

    with pytest.raises(ArtifactCorrupt, match="predict_proba"):
        load_artifact(path)


# The features of a model and those that the API asks for
