"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries: real data without a download.

They are the test part of E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998: each pixel counts the ink in a block of 4x4, 0 to 16.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

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
    table = _table()
    images = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)  # (N, 1, 8, 8)
    every = ImageSet(images, table[:, -1].astype(np.int64), CLASSES)
    rest, held_out = split_stratified(every, test, TEST_SEED)
    train, validating = split_validation(rest, validation, seed)
    pixels = rest.images / 255
    return ImageData("digits", train, validating, held_out, (float(pixels.mean()),), (float(pixels.std()),))


def _table() -> npt.NDArray[np.float64]:
    """64 pixels and the label of each image, (N, 65), as scikit-learn's file has them.

    The file alone takes a hundredth of the time that importing scikit-learn takes, which is longer than all else before
    the first step; where a version keeps it elsewhere, scikit-learn is asked.
    """
    spec = find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).with_name("datasets") / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError('digits: needs scikit-learn, which is missing: pip install "xpformer[recipes]"') from error
    data, target = load(return_X_y=True)
    return np.column_stack([data, target])
