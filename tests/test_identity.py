"""A fingerprint cannot see code: where code behind pixels, weights or normal residuals changes, look at its version."""

import hashlib
import inspect
from collections.abc import Callable

import pytest

from vaeproj import crops, data, model, training, weight

DECODING = (data.open_image, data.bit_depth, data.decode, data._decode_item, data._decode_all)
TRAINING = (
    crops.CropSampler, model._BlockConv2d, model._BlockConvTranspose2d, model._block_weight, model.VAE, model.elbo_loss,
    training.batch_indices, training.learning_rates, training.train_step, training.fit,
)  # fmt: skip
EXPECTED = (weight.features, weight.smoothed_residual, weight.fit_expected)
KNOWN = {
    "DECODING_VERSION": (3, "8ae7c6ed9d40d537"),
    "TRAINING_VERSION": (2, "e675c2f44e93756e"),
    "EXPECTED_VERSION": (1, "9b9064f1919b5c66"),
}


@pytest.mark.parametrize(("version", "module", "code"), [
    ("DECODING_VERSION", data, DECODING), ("TRAINING_VERSION", training, TRAINING),
    ("EXPECTED_VERSION", weight, EXPECTED),
])  # fmt: skip
def test_a_change_of_code_is_a_change_of_version(version: str, module: object, code: tuple[Callable, ...]) -> None:
    source = "".join(inspect.getsource(part) for part in code)
    now = (getattr(module, version), hashlib.sha256(source.encode()).hexdigest()[:16])
    assert now == KNOWN[version], (
        f"The code behind {version} has changed. If the same files and settings now give other bits, raise {version}; if they "
        f"do not (compare the weights' hash of a short training, or decoded arrays), record that here: {now}"
    )
