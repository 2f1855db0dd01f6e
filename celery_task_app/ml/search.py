"""The search for LightGBM's parameters: repeatable, and taken up again where it was stopped.

What a trial is judged by is train.py's business.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

logger = logging.getLogger(__name__)


def open_study(study_file: Path) -> optuna.Study:
    """Return what was tried before; a file that is not there is begun."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study_file.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(study_file)))
    return optuna.create_study(storage=storage, study_name="churn", load_if_exists=True)


def search(study: optuna.Study, trials: int, judge: Callable[[dict[str, Any]], tuple[int, float]]) -> dict[str, Any]:
    """Return the parameters with the least loss.

    Trials that the study has are not made again, and those that follow are the same as without a stop: each has a
    sampler with a seed of its own.

    Args:
        study: what was tried before.
        trials: how many there shall be, those counted.
        judge: returns for parameters how many trees they need, and their loss.
    """

    def loss(trial: Trial) -> float:
        parameters = suggest(trial)
        trees, loss = judge(parameters)
        trial.set_user_attr("parameters", parameters | {"n_estimators": trees})
        return loss

    while (number := len(completed(study))) < trials:
        study.sampler = optuna.samplers.TPESampler(seed=number)
        study.optimize(loss, n_trials=1)
        last = completed(study)[-1].value
        logger.info("trial %d of %d log_loss=%.5f best=%.5f", number + 1, trials, last, study.best_value)
    return dict(study.best_trial.user_attrs["parameters"])


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that came to their end; one that was killed did not."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def suggest(trial: Trial) -> dict[str, Any]:
    """Return the parameters of a trial."""
    return {
        "num_leaves": trial.suggest_int("num_leaves", 8, 24, log=True),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.4, 0.9),
        "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        "min_child_samples": trial.suggest_int("min_child_samples", 15, 100, log=True),
        "path_smooth": trial.suggest_float("path_smooth", 0.0, 60.0),
    }
