import pickle
from pathlib import Path
from typing import Any

import pytest

from celery_task_app.ml.search import completed_trials, open_study, search


class Interruption(Exception):
    pass


def evaluate(parameters: dict[str, Any]) -> tuple[int, float]:
    """Return 70 trees, and a loss that is lowest with 15 leaves and a subsample of 0.8."""
    return 70, (parameters["num_leaves"] - 15) ** 2 / 100 + (parameters["subsample"] - 0.8) ** 2


def completed_parameters(study_file: Path) -> list[dict[str, Any]]:
    return [trial.params for trial in completed_trials(open_study(study_file))]


def test_the_best_parameters_include_the_number_of_trees(tmp_path: Path) -> None:
    found = search(open_study(tmp_path / "study"), 40, evaluate)

    assert abs(found["num_leaves"] - 15) <= 2
    assert abs(found["subsample"] - 0.8) < 0.1
    assert found["n_estimators"] == 70


def test_an_interrupted_search_continues_with_the_same_trials(tmp_path: Path) -> None:
    calls = 0

    def interrupted_at_the_15th(parameters: dict[str, Any]) -> tuple[int, float]:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise Interruption
        return evaluate(parameters)

    with pytest.raises(Interruption):
        search(open_study(tmp_path / "interrupted"), 20, interrupted_at_the_15th)
    resumed = search(open_study(tmp_path / "interrupted"), 20, evaluate)

    assert resumed == search(open_study(tmp_path / "whole"), 20, evaluate)
    interrupted, whole = (completed_parameters(tmp_path / name) for name in ("interrupted", "whole"))
    assert pickle.dumps(interrupted) == pickle.dumps(whole)
    assert len(interrupted) == 20


def test_completed_trials_are_not_repeated(tmp_path: Path) -> None:
    found = search(open_study(tmp_path / "study"), 5, evaluate)

    def not_called(_: dict[str, Any]) -> tuple[int, float]:
        raise AssertionError

    assert search(open_study(tmp_path / "study"), 5, not_called) == found
