"""Fused pairs for NumPy arrays."""

from xpformer.functional._op import Pair

PAIRS: dict[str, tuple[Pair, ...]] = {}
