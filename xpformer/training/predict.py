"""What a trained model says about single images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpformer.array import HostArray
from xpformer.data.images import normalize

if TYPE_CHECKING:
    from xpformer.training.session import Trained

_BATCH = 500


def predict_images(trained: Trained, images: HostArray) -> HostArray:
    """Class probabilities ``softmax(model(x))`` of images as they are stored.

    Args:
        trained: the model and its preprocessing.
        images: (N, C, H, W) uint8.

    Returns:
        (N, classes) float64.
    """
    model, how = trained.model, trained.preprocessor
    mean, std = tuple(how["mean"]), tuple(how["std"])
    scores = []
    for start in range(0, len(images), _BATCH):
        x = normalize(images[start : start + _BATCH], mean, std, model.dtype)
        scores.append(model.backend.to_numpy(model(model.backend.asarray(x, model.dtype))))
    logits = np.concatenate(scores).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: HostArray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
