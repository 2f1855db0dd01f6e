"""CatBoost's trees in LightGBM's format. Only training needs CatBoost; the worker never hears of it.

What two libraries agree on is less a matter of luck than what two runs of one do: CatBoost's trees are symmetric (all
nodes of a level ask the same), and it weighs and shakes what it learns from in a way of its own.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostClassifier
from numpy.typing import NDArray

# By cross-validation within the training part: shallow trees, each of which sees half of the features at a level.
CATBOOST_PARAMETERS = {
    "depth": 4,
    "learning_rate": 0.22,
    "rsm": 0.5,
    "l2_leaf_reg": 6,
    "random_strength": 2,
    "random_seed": 11,
}


def symmetric_trees(matrix: NDArray[np.float64], churned: NDArray[np.int64], trees: int) -> list[str]:
    """Fit CatBoost and return its trees, each as text in LightGBM's format; their outputs add up to the log-odds.

    Args:
        matrix: n rows of floats.
        churned: n times 1 or 0.
        trees: how many.
    """
    leave_alone = {"allow_writing_files": False, "verbose": False, "thread_count": 1}
    model = CatBoostClassifier(iterations=trees, **CATBOOST_PARAMETERS, **leave_alone).fit(matrix, churned)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.json")
        model.save_model(path, format="json")
        content = json.loads(path.read_bytes())
    scale, (bias,) = content["scale_and_bias"]
    grown = content["oblivious_trees"]
    return [_as_text(tree, scale, bias / len(grown)) for tree in grown]


def _as_text(tree: Mapping[str, Any], scale: float, offset: float) -> str:
    """Write a symmetric tree as one whose nodes are numbered level by level, and its leaves ~0, ~1 and so on.

    CatBoost's first split is the lowest bit of a leaf's number, so it is asked last.
    """
    levels = list(enumerate(reversed(tree["splits"] or [])))  # none: nothing was worth asking
    inner = 2 ** len(levels) - 1
    children = [child if child < inner else inner - 1 - child for child in range(1, 2 * inner + 1)]
    counts = [round(weight) + 1 for weight in tree["leaf_weights"]]  # contributions are shares of them: none may be 0
    fields: dict[str, Sequence[float]] = {
        "num_leaves": [inner + 1],
        "num_cat": [0],
        "split_feature": [split["float_feature_index"] for level, split in levels for _ in range(2**level)],
        "threshold": [split["border"] for level, split in levels for _ in range(2**level)],
        "decision_type": [2] * inner,  # a number, as LightGBM marks its own where no value is missing
        "left_child": children[::2],
        "right_child": children[1::2],
        "leaf_value": [scale * value + offset for value in tree["leaf_values"]],
        "leaf_count": counts,
        "internal_count": [sum(part) for level, _ in levels for part in np.split(np.array(counts), 2**level)],
    }
    return "Tree=0\n" + "".join(f"{name}={' '.join(map(str, values))}\n" for name, values in fields.items()) + "\n\n"
