"""Models on huggingface.co, by ``owner/name``, through the library ``huggingface_hub`` and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from xpformer.errors import CheckpointError
from xpformer.interop.assets import KEPT
from xpformer.interop.preprocessor import FILE

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", FILE, *KEPT)


def is_name(source: str) -> bool:
    """Whether ``source`` can be a model on the hub and no path: nothing here begins like it."""
    return bool(_NAME.fullmatch(source)) and not Path(source.partition("/")[0]).exists()


def download(name: str, revision: str | None = None) -> Path:
    """The directory of a model, fetched where it is not in the cache; weights are safetensors files alone.

    Raises:
        CheckpointError: if the library is missing, or the hub cannot be reached or has no such model.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{name}: is no run and no directory here; to look for it on the hub: pip install 'xpformer[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # of the network, of the hub, of the cache: the library's own, OSError, ValueError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{name}: is no run and no directory here, and cannot be had from the hub: {reason:.200}"
        ) from error
