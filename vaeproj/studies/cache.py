"""What a study has computed already, found by everything that made it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import config
from ..files import kept_arrays
from ..workspace import Workspace

CODE = ("blur", "crops", "model", "projection", "localization", "metrics", "studies/article", "studies/comparison")


def cached(ws: Workspace, name: str, compute: Callable[[], tuple[Any, np.ndarray]]) -> tuple[Any, np.ndarray]:
    """What ``compute`` returns, values for JSON and an array: from disk if it was computed before, so ``name`` must say it all.

    The file is named after configuration, data and their names, weights, kind of device, PyTorch, and the code that turns
    these into results: with any other of them it is not found.

    Args:
        name: what of the workspace is computed; what stands before a colon begins the file's name.
    """
    package = Path(config.__file__).parent
    code = hashlib.sha256(b"".join((package / f"{module}.py").read_bytes() for module in CODE)).hexdigest()
    data = [ws.train.digest, ws.test.digest, ws.test.names]
    made_from = json.dumps([name, data, ws.weights, ws.device.type, torch.__version__, code])
    path = ws.kept / "cache" / f"{name.split(':')[0]}-{ws.config.fingerprint(data=made_from)}.npz"

    def make() -> dict[str, np.ndarray]:
        values, array = compute()
        return {"values": np.array(json.dumps(values, default=np.ndarray.tolist)), "array": array}

    arrays = kept_arrays(path, make)
    return json.loads(arrays["values"].item()), arrays["array"]
