"""One feature more, in a copy of the repository: three files change; openapi.json and the model are made again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT

# Each file, the line after which the feature is added, and the lines to add.
CHANGES = {
    "models.py": (
        '    """Share of the credit limit in use; above 1 is over the limit."""\n',
        '    Region: Literal["North", "South"] = Field(examples=["South"])\n    """Region of the branch."""\n',
    ),
    "celery_task_app/ml/data_set.py": ('    "Avg_Utilization_Ratio": "number",\n', '    "Region": "category",\n'),
    "test_client.py": ('    "Avg_Utilization_Ratio": 0.061,\n', '    "Region": "South",\n'),
}
OPENAPI = "import json, app; print(json.dumps(app.app.openapi(), indent=1))"  # as `make openapi`
# As `make train`, but on synthetic customers and in a second: fit a pipeline, and describe the feature in the manifest.
TRAIN = """
import hashlib, json
from pathlib import Path

import joblib
from celery_task_app.ml.data_set import CLASSES, FEATURES, TARGET
from celery_task_app.ml.train import make_churn_pipeline
from tests.harness.customers import CUSTOMER
from tests.harness.synthetic_customers import CATEGORIES, QUICK, make_table

table = make_table()
pipeline = make_churn_pipeline(QUICK).fit(table[list(FEATURES)], table[TARGET] == CLASSES[1], with_catboost=False)
path = Path("celery_task_app/ml/artifacts/churn.joblib")
joblib.dump(pipeline, path)
manifest = json.loads(path.with_suffix(".json").read_text())
manifest["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
manifest["version"] = manifest["sha256"][:12]
manifest["features"].append({"name": "Region", "type": "category", "categories": CATEGORIES["Region"]})
(probability,) = pipeline.predict_proba({name: [value] for name, value in CUSTOMER.items()})[:, 1]
manifest["golden"] = [{"customer": CUSTOMER, "probability": probability}]
path.with_suffix(".json").write_text(json.dumps(manifest))
"""
# The worker's predictions for customers of the load generator, and the reasons, have the feature.
PREDICT = """
import itertools, json
from pathlib import Path

from benchmarks.load import customers
from celery_task_app.ml.model import ChurnModel

model = ChurnModel(Path("celery_task_app/ml/artifacts/churn.joblib"))
drawn = [json.loads(customer) for customer in itertools.islice(customers(seed=1), 50)]
assert {customer["Region"] for customer in drawn} == {"North", "South"}
assert len(set(model.churn_probabilities(drawn))) > 1
del drawn[0]["Region"]
try:
    model.churn_probabilities(drawn)
except Exception as error:
    print(error)
"""
TESTS = ["test_models.py", "test_openapi.py", "test_json_route.py", "test_problems.py", "ml/test_data_set.py"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository whose customers have one feature more."""
    path = tmp_path_factory.mktemp("more") / "tree"
    left_out = shutil.ignore_patterns(".git", ".venv*", ".data", ".*_cache", ".hypothesis", "__pycache__", "*.csv")
    shutil.copytree(ROOT, path, ignore=left_out)
    for name, (before, added) in CHANGES.items():
        text = (path / name).read_text()
        assert text.count(before) == 1
        (path / name).write_text(text.replace(before, before + added))
    (path / "openapi.json").write_text(run(path, "-c", OPENAPI))
    run(path, "-c", TRAIN)
    return path


def run(tree: Path, *command: str) -> str:
    """Run Python in the copy; return its output."""
    env = {name: value for name, value in os.environ.items() if name != "DATA"}  # the data set lacks the new feature
    done = subprocess.run(
        [sys.executable, *command], cwd=tree, env=env, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_api_the_test_client_the_load_generator_and_the_training_have_the_feature(tree: Path) -> None:
    run(tree, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *(f"tests/unit/{name}" for name in TESTS))


def test_openapi_has_the_feature_and_its_example(tree: Path) -> None:
    customer = json.loads((tree / "openapi.json").read_text())["components"]["schemas"]["Customer"]
    assert customer["properties"]["Region"]["enum"] == ["North", "South"]
    assert customer["properties"]["Region"]["description"] == "Region of the branch."
    assert "Region" in customer["required"]
    assert customer["examples"][0]["Region"] == "South"


def test_the_worker_predicts_customers_with_the_feature_and_refuses_others(tree: Path) -> None:
    assert run(tree, "-c", PREDICT) == "Region is missing, and the model was trained on it\n"
