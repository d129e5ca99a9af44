"""A cache of what studies have computed, keyed by everything that it depends on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import kept_arrays
from ..workspace import Workspace

CODE = ("blur", "crops", "model", "weight", "projection", "localization", "metrics", "studies/article", "studies/comparison")


def code_digest() -> str:
    """Sha256 of the modules on which what studies compute depends."""
    return hashlib.sha256(b"".join((Path(__file__).parents[1] / f"{m}.py").read_bytes() for m in CODE)).hexdigest()


def cached(ws: Workspace, name: str, compute: Callable[[], tuple[Any, np.ndarray]]) -> tuple[Any, np.ndarray]:
    """What ``compute`` returns, values for JSON and an array: from disk if computed before under ``name`` (its part before a
    colon begins the file's name) with the same configuration, data, their names, weights, kind of device, PyTorch and code.
    """
    data = [ws.train.digest, ws.test.digest, ws.test.names]
    made_from = [name, *data, ws.weights, ws.device.type, torch.__version__, code_digest()]
    path = ws.kept / "cache" / f"{name.split(':')[0]}-{ws.config.fingerprint(data=json.dumps(made_from))}.npz"

    def make() -> dict[str, np.ndarray]:
        values, array = compute()
        return {"values": np.array(json.dumps(values, default=np.ndarray.tolist)), "array": array}

    arrays = kept_arrays(path, make)
    return json.loads(arrays["values"].item()), arrays["array"]
