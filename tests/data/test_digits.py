from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from xpformer.data import load_digits
from xpformer.errors import ConfigError, DataError

pytest.importorskip("sklearn", reason="needs scikit-learn")


def test_facts() -> None:
    digits = load_digits()
    assert digits.name == "digits"
    assert [len(split) for split in (digits.train, digits.validation, digits.test)] == [1257, 180, 360]
    assert digits.image_shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    together = np.concatenate([digits.train.labels, digits.validation.labels, digits.test.labels])
    assert np.bincount(together).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(digits.test.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert digits.mean == pytest.approx((0.3055,), abs=1e-3)
    assert digits.std == pytest.approx((0.376,), abs=1e-3)


def test_sixteen_shades_of_ink() -> None:
    images = load_digits().train.images
    expected = [round(255 * v / 16) for v in range(17)]
    assert np.unique(images).tolist() == expected


def test_the_seed_chooses_the_validation_split_and_never_the_test_split() -> None:
    first, again, other = load_digits(seed=1), load_digits(seed=1), load_digits(seed=2)
    assert first.hashes() == again.hashes()
    assert first.test.sha256() == other.test.sha256()
    assert first.validation.sha256() != other.validation.sha256()
    assert first.mean == other.mean


def test_the_test_split_of_every_version_is_the_same() -> None:
    """Golden: accuracies of two versions are comparable only on the same test images."""
    assert load_digits().test.sha256() == "9bc9550d56bbb5a7def66067f54ee010835a1891278419b5b100c82855bc1c47"


def test_the_file_is_read_without_scikit_learn_or_else_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing scikit-learn took longer than all else before the first step."""
    code = "import sys, xpformer.data; print(xpformer.data.load_digits().test.sha256(), 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digits = load_digits()
    assert done.stdout.split() == [digits.test.sha256(), "False"]
    monkeypatch.setattr("xpformer.data.digits.find_spec", lambda name: None)
    assert load_digits().hashes() == digits.hashes()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="size is 1437, expected 1 to 1436 of the 1437 images"):
        load_digits(validation=1437)
    with pytest.raises(ConfigError, match="size is 1797"):
        load_digits(test=1797)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r'^digits: needs scikit-learn, .*pip install "xpformer\[recipes\]"$'):
        load_digits()
