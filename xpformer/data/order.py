"""The batch order as a function of (seed, step): nothing to save, nothing to restore.

Step ``s`` belongs to epoch ``s // steps_per_epoch``; each epoch is one permutation of all samples, cut into batches.
A run that resumes at step 17 takes the batch that the uninterrupted run took at step 17.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from xpformer.errors import ConfigError
from xpformer.rng import host_generator


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The permutation of 0..n-1 that epoch ``epoch`` (from 0) goes through: (n,), read-only; the last two are kept."""
    order = host_generator(seed, "order", epoch).permutation(n)
    order.flags.writeable = False
    return order


def steps_per_epoch(n: int, batch_size: int, drop_last: bool = True) -> int:
    """floor(n / batch_size), or the ceiling when the last, smaller batch is kept.

    Raises :class:`ConfigError` when ``n`` samples do not make one step.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    steps = n // batch_size if drop_last else -(-n // batch_size)
    if steps < 1:
        repair = f"set train.batch_size={n} or less" if n else "give some"
        raise ConfigError(f"batch_size is {batch_size}, but there are only {n} samples: {repair}")
    return steps


def batch_indices(step: int, n: int, batch_size: int, seed: int, drop_last: bool = True) -> npt.NDArray[np.int64]:
    """The samples of global step ``step`` (from 0): (batch_size,), read-only; shorter for a kept last batch.

    Raises :class:`ConfigError` for a negative step and when ``n`` samples do not make one step.
    """
    if step < 0:
        raise ConfigError(f"step is {step}, expected at least 0")
    epoch, position = divmod(step, steps_per_epoch(n, batch_size, drop_last))
    return epoch_order(n, seed, epoch)[position * batch_size : (position + 1) * batch_size]
