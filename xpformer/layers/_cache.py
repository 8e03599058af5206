"""The key-value cache: what attention has read so far, so that a new token costs one token's work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xpformer.errors import ConfigError

if TYPE_CHECKING:
    from xpformer.backend import Backend


class KVCache:
    """Keys and values of the tokens that a model has seen, for each of its attention layers.

    One cache belongs to one batch of sequences and goes from pass to pass: ``Context(backend, cache=cache)``.  It is
    allocated once; where arrays can be written a pass writes its part, elsewhere the filled part is bound again.  What
    a pass adds counts from :meth:`advance` on, so that a pass that fails half-way leaves the cache as it was.

    Args:
        backend: where the arrays live.
        heads: path of each attention layer to its number of key heads and their width.
        batch: number of sequences.
        length: the most tokens a sequence may get.
        dtype: of keys and values.

    Attributes:
        filled: how many tokens are in it.
        mask: (B, filled) boolean, which of them are tokens and not padding; ``None`` while all are.
    """

    def __init__(
        self, backend: Backend, heads: Mapping[str, tuple[int, int]], batch: int, length: int, dtype: str
    ) -> None:
        if batch < 1 or length < 1:
            raise ConfigError(f"a cache for {batch} sequences of {length} tokens holds nothing; both must be positive")
        self.backend, self.batch, self.length, self.filled = backend, batch, length, 0
        self.mask: Any = None
        room = length if backend.mutable else 0
        self._held = {
            path: tuple(backend.zeros((batch, room, *shape), dtype) for _ in range(2)) for path, shape in heads.items()
        }

    def check(self, batch: int, count: int) -> None:
        """Raise unless ``count`` more tokens of ``batch`` sequences fit.

        Raises:
            ConfigError: naming what does not fit.
        """
        if batch != self.batch:
            raise ConfigError(f"the cache is for {self.batch} sequences, got {batch}; make one with new_cache({batch})")
        if self.filled + count > self.length:
            raise ConfigError(
                f"the cache holds {self.length} tokens and has {self.filled}, {count} more do not fit; "
                f"make a longer one with new_cache({batch}, length)"
            )

    def see(self, mask: Any, count: int) -> Any:
        """The mask (B, filled + count) of all tokens with the next ``count``, whose own mask is given, or ``None``."""
        xp = self.backend.xp
        if mask is None and self.mask is None:
            return None
        parts = [
            xp.ones((self.batch, n), dtype=xp.bool, device=self.backend.device) if part is None else part[:, :n]
            for part, n in ((self.mask, self.filled), (mask, count))
        ]
        self.mask = xp.concat(parts, axis=1)
        return self.mask

    def extend(self, path: str, key: Any, value: Any) -> tuple[Any, Any]:
        """Append keys and values (B, T, G, d) of the layer at ``path``: all of them so far, (B, filled + T, G, d)."""
        end = self.filled + key.shape[1]
        held = self._held[path]
        if not self.backend.mutable:
            xp = self.backend.xp
            pairs = zip(held, (key, value), strict=True)
            keys, values = (xp.concat([old[:, : self.filled, ...], new], axis=1) for old, new in pairs)
            self._held[path] = (keys, values)
            return keys, values
        for array, new in zip(held, (key, value), strict=True):
            array[:, self.filled : end, ...] = new
        return held[0][:, :end, ...], held[1][:, :end, ...]

    def advance(self, count: int) -> None:
        """A pass over ``count`` tokens has ended."""
        self.filled += count
