"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries: real data without a download.

They are the test part of E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998: each pixel counts the ink in a block of 4x4, 0 to 16.
"""

from __future__ import annotations

import numpy as np

from xpformer.data.images import ImageData, ImageSet
from xpformer.data.splits import split_stratified, split_validation
from xpformer.errors import DataError

CLASSES = tuple("0123456789")
TEST_SEED = 1797  # the test images never change, whatever the seed of a run


def load_digits(*, validation: int = 180, test: int = 360, seed: int = 0) -> ImageData:
    """The digits as (N, 1, 8, 8): ``test`` fixed images with all classes in proportion, ``validation`` by ``seed``.

    A pixel v of 0..16 becomes round(255 v / 16).  ``mean`` and ``std`` are those of all images outside the test split,
    so they do not depend on the seed.  Raises :class:`DataError` when scikit-learn is missing and
    :class:`ConfigError` for a split that does not fit.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError('digits: needs scikit-learn, which is missing: pip install "xpformer[recipes]"') from error
    bunch = load()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8)
    every = ImageSet(images, bunch.target.astype(np.int64), CLASSES)
    rest, held_out = split_stratified(every, test, TEST_SEED)
    train, validating = split_validation(rest, validation, seed)
    pixels = rest.images / 255
    return ImageData("digits", train, validating, held_out, (float(pixels.mean()),), (float(pixels.std()),))
