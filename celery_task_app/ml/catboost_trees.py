"""CatBoost's trees as text of a LightGBM model. Only training needs this module; the worker does not have CatBoost.

LightGBM does not document the text format, so no other module reads or writes it. The reasons are in
docs/adr/0006-catboost-trees-in-lightgbm-text.md.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostClassifier
from numpy.typing import NDArray

from celery_task_app.errors import VersionMismatch

# Chosen by cross-validation on the training part: shallow trees, and half of the features for each level of a tree.
CATBOOST_PARAMETERS = {
    "depth": 4,
    "learning_rate": 0.22,
    "rsm": 0.5,
    "l2_leaf_reg": 6,
    "random_strength": 2,
    "random_seed": 11,
}

_MODEL_TEXT = re.compile(
    r"(?P<head>tree\nversion=v4\n.*?)tree_sizes=(?P<sizes>[^\n]*)\n+(?P<trees>Tree=0\n.*?)(?P<foot>end of trees\n.*)",
    re.DOTALL,
)


def fit_catboost_trees(matrix: NDArray[np.float64], churned: NDArray[np.int64], trees: int) -> list[str]:
    """Fit CatBoost, and write its trees in LightGBM's text format.

    Args:
        matrix: n rows of floats.
        churned: n times 1 (left) or 0 (stayed).
        trees: the number of trees.

    Returns:
        The trees, whose outputs add up to the log-odds of CatBoost.
    """
    options = {"allow_writing_files": False, "verbose": False, "thread_count": 1}
    model = CatBoostClassifier(iterations=trees, **CATBOOST_PARAMETERS, **options).fit(matrix, churned)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.json")
        model.save_model(path, format="json")
        content = json.loads(path.read_bytes())
    scale, (bias,) = content["scale_and_bias"]
    fitted = content["oblivious_trees"]
    return [_format_tree(tree, scale, bias / len(fitted)) for tree in fitted]


def splice_trees(model_text: str, trees: Sequence[str]) -> str:
    """Add trees to a LightGBM model; each of the model's trees is followed by one of the others.

    The log-odds of the new model are the sum of both.

    Args:
        model_text: the model, as `Booster.model_to_string` returns it.
        trees: the other trees in the same text format.

    Returns:
        The new model, which `Booster(model_str=...)` reads.

    Raises:
        VersionMismatch: the text lacks the parts that LightGBM 4 writes.
    """
    parts = _MODEL_TEXT.fullmatch(model_text)
    own = re.split(r"(?=^Tree=)", parts["trees"], flags=re.MULTILINE)[1:] if parts else []
    if parts is None or len(own) != len(parts["sizes"].split()):
        raise VersionMismatch(
            f"LightGBM {metadata.version('lightgbm')} writes a model text without the expected parts (version=v4, "
            "tree_sizes, Tree=0, end of trees): compare the text with celery_task_app/ml/catboost_trees.py; "
            "docs/adr/0006-catboost-trees-in-lightgbm-text.md says why it matters"
        )
    both = "".join(chain.from_iterable(zip_longest(own, trees, fillvalue="")))
    return f"{parts['head']}\n{both}{parts['foot']}"  # LightGBM reads a model without tree_sizes


def _format_tree(tree: Mapping[str, Any], scale: float, offset: float) -> str:
    """Write a symmetric tree: inner nodes are numbered level by level, and the leaves are ~0, ~1 and so on.

    All nodes of a level have the same split. CatBoost's first split is the lowest bit of a leaf's number, so it is the
    last level here.
    """
    levels = list(enumerate(reversed(tree["splits"] or [])))  # None if CatBoost found no split
    inner = 2 ** len(levels) - 1
    children = [child if child < inner else inner - 1 - child for child in range(1, 2 * inner + 1)]
    counts = [round(weight) + 1 for weight in tree["leaf_weights"]]  # not 0: LightGBM's SHAP values divide by counts
    fields: dict[str, Sequence[float]] = {
        "num_leaves": [inner + 1],
        "num_cat": [0],
        "split_feature": [split["float_feature_index"] for level, split in levels for _ in range(2**level)],
        "threshold": [split["border"] for level, split in levels for _ in range(2**level)],
        "decision_type": [2] * inner,  # LightGBM's code for a numeric split without missing values
        "left_child": children[::2],
        "right_child": children[1::2],
        "leaf_value": [scale * value + offset for value in tree["leaf_values"]],
        "leaf_count": counts,
        "internal_count": [sum(part) for level, _ in levels for part in np.split(np.array(counts), 2**level)],
    }
    return "Tree=0\n" + "".join(f"{name}={' '.join(map(str, values))}\n" for name, values in fields.items()) + "\n\n"
