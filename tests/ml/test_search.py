import pickle
from pathlib import Path
from typing import Any

import pytest

from celery_task_app.ml.search import completed, open_study, search


class Stop(Exception):
    pass


def loss(parameters: dict[str, Any]) -> tuple[int, float]:
    """Least at 15 leaves and a subsample of 0.8."""
    return 70, (parameters["num_leaves"] - 15) ** 2 / 100 + (parameters["subsample"] - 0.8) ** 2


def tried(study_file: Path) -> list[dict[str, Any]]:
    return [trial.params for trial in completed(open_study(study_file))]


def test_the_best_parameters_are_found_and_the_trees_are_among_them(tmp_path: Path) -> None:
    found = search(open_study(tmp_path / "study"), 40, loss)

    assert abs(found["num_leaves"] - 15) <= 2
    assert abs(found["subsample"] - 0.8) < 0.1
    assert found["n_estimators"] == 70


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    calls = 0

    def killed_at_the_15th(parameters: dict[str, Any]) -> tuple[int, float]:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise Stop
        return loss(parameters)

    with pytest.raises(Stop):
        search(open_study(tmp_path / "stopped"), 20, killed_at_the_15th)
    resumed = search(open_study(tmp_path / "stopped"), 20, loss)

    assert resumed == search(open_study(tmp_path / "at once"), 20, loss)
    assert pickle.dumps(tried(tmp_path / "stopped")) == pickle.dumps(tried(tmp_path / "at once"))
    assert len(tried(tmp_path / "stopped")) == 20


def test_trials_that_were_made_are_not_made_again(tmp_path: Path) -> None:
    found = search(open_study(tmp_path / "study"), 5, loss)

    def never(_: dict[str, Any]) -> tuple[int, float]:
        raise AssertionError

    assert search(open_study(tmp_path / "study"), 5, never) == found
