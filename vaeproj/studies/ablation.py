"""One change at a time: metrics of the preset's own method with some hyper-parameters changed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ..metrics import METRICS, evaluate
from ..workspace import Workspace
from .cache import cached
from .comparison import own_maps


def ablate(ws: Workspace, changes: dict[str, Any]) -> dict[str, float]:
    """Metrics of the preset's own method under ``changes``; computed once, on a new VAE where training is touched."""
    changed = ws.reconfigured(**changes)

    def compute() -> tuple[Any, np.ndarray]:
        metrics = evaluate(own_maps(changed, ws.test.images), ws.test.gt_masks, ws.test.defects, bootstrap=0)
        return {key: metrics[key] for key in METRICS}, np.zeros(0)

    return cached(changed, "ablation", compute)[0]


def best_on(proxy: Workspace, changes: dict[str, Any], name: str, values: Sequence[Any]) -> Any:
    """The value of one hyper-parameter, beside other ``changes``, with the highest pixel AP on a proxy (`proxy_workspace`)."""
    return max(values, key=lambda value: ablate(proxy, changes | {name: value})["pixel_AP"])


def sweep(ws: Workspace, name: str, values: Sequence[Any]) -> dict[str, list[float]]:
    """`ablate` along the values of one hyper-parameter: lists in the order of ``values`` for each metric."""
    rows = [ablate(ws, {name: value}) for value in tqdm(values, desc=name, unit="value")]
    return {key: [row[key] for row in rows] for key in METRICS}
