"""Image data sets, their batch order and their augmentation: host code, plain NumPy.

Pixels stay ``uint8`` until a batch is made: :func:`batch_indices` says which images step ``s`` takes,
:func:`augment` moves them, :func:`normalize` makes the floats that a model sees.
"""

from __future__ import annotations

from xpformer.data.augment import Augmentation, augment
from xpformer.data.digits import load_digits
from xpformer.data.files import load_image
from xpformer.data.idx import read_idx
from xpformer.data.images import ImageData, ImageSet, normalize
from xpformer.data.mnist import load_mnist
from xpformer.data.order import batch_indices, epoch_order, steps_per_epoch
from xpformer.data.splits import split_stratified, split_validation

__all__ = [
    "Augmentation",
    "ImageData",
    "ImageSet",
    "augment",
    "batch_indices",
    "epoch_order",
    "load_digits",
    "load_image",
    "load_mnist",
    "normalize",
    "read_idx",
    "split_stratified",
    "split_validation",
    "steps_per_epoch",
]
