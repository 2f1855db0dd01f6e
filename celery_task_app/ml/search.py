"""The search for LightGBM's parameters: reproducible, and continued after an interruption. It trains no model.

train.py computes the loss of a trial.
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
    """Open the study in a file; create the file if it does not exist."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study_file.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(study_file)))
    return optuna.create_study(storage=storage, study_name="churn", load_if_exists=True)


def search(study: optuna.Study, trials: int, evaluate: Callable[[dict[str, Any]], tuple[int, float]]) -> dict[str, Any]:
    """Run trials until the study has enough, and return the parameters with the lowest loss.

    Each trial has a sampler with its own seed. So an interrupted search continues with the same trials.

    Args:
        study: the completed trials; they are not repeated.
        trials: the number of trials, including the completed ones.
        evaluate: returns the number of trees and the loss for parameters.

    Returns:
        Parameters of LightGBM, including the number of trees.
    """

    def objective(trial: Trial) -> float:
        parameters = suggest(trial)
        trees, loss = evaluate(parameters)
        trial.set_user_attr("parameters", parameters | {"n_estimators": trees})
        return loss

    while (number := len(completed_trials(study))) < trials:
        study.sampler = optuna.samplers.TPESampler(seed=number)
        study.optimize(objective, n_trials=1)
        last = completed_trials(study)[-1].value
        logger.info(
            "trial completed number=%d of=%d log_loss=%.5f best=%.5f", number + 1, trials, last, study.best_value
        )
    return dict(study.best_trial.user_attrs["parameters"])


def completed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the completed trials; an interrupted trial is not completed."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def suggest(trial: Trial) -> dict[str, Any]:
    """Suggest the parameters of a trial."""
    return {
        "num_leaves": trial.suggest_int("num_leaves", 8, 24, log=True),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.4, 0.9),
        "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        "min_child_samples": trial.suggest_int("min_child_samples", 15, 100, log=True),
        "path_smooth": trial.suggest_float("path_smooth", 0.0, 60.0),
    }
