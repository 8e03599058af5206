"""What a trained model says about single images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xpformer.array import HostArray
from xpformer.data.images import normalize
from xpformer.training.metrics import host_probabilities

if TYPE_CHECKING:
    from xpformer.training.pretrained import Opened
    from xpformer.training.trained import Trained

_BATCH = 500


def predict_images(trained: Trained | Opened, images: HostArray) -> HostArray:
    """Class probabilities ``softmax(model(x))`` of images as they are stored.

    Args:
        trained: the model and its preprocessing.
        images: (N, C, H, W) uint8.

    Returns:
        (N, classes) float64.
    """
    model = trained.model
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    logits = [model.backend.to_numpy(model(model_input(trained, batch))) for batch in batches]
    return host_probabilities(np.concatenate(logits))


def model_input(trained: Trained | Opened, images: HostArray) -> Any:
    """Images (N, C, H, W) ``uint8`` as the model takes them, on its backend."""
    model, how = trained.model, trained.preprocessor
    return model.backend.asarray(normalize(images, tuple(how["mean"]), tuple(how["std"]), model.dtype), model.dtype)
