"""What all models share: a configuration, and directories that they are read from and written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from xpformer.array import dtype_name
from xpformer.errors import ShapeError
from xpformer.layers import Layer

if TYPE_CHECKING:
    from xpformer.backend import Backend
    from xpformer.interop.assets import Assets


class Model(Layer):
    """A layer that is a whole model.

    Attributes:
        config: its shape, a frozen dataclass.
        assets: what stood beside the weights that it was read from, the names of its classes, its preprocessor and its
            tokenizer; ``None`` where it was not read.
    """

    config: Any
    assets: Assets | None = None

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        raise NotImplementedError(f"{type(self).__name__} defines no __init__(config, *, seed)")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        backend: Backend | str = "numpy",
        dtype: str | None = None,
        seed: int = 0,
        revision: str | None = None,
    ) -> Self:
        """The model in a directory that we or Hugging Face wrote, or in a file or on the hub.

        What is worth knowing is a :class:`UserWarning` of one line: a classifier that was missing, for example.

        Args:
            source: a directory, a ``.npz`` of vit_jax, or the name of a model on the hub, ``owner/name``.
            backend: to place it on.
            dtype: ``float32`` or ``float64``; by default that of the file, and float32 where it has half precision.
            seed: of a classifier that is missing there.
            revision: branch, tag or commit on the hub.

        Raises:
            CheckpointError: if the files are damaged, or a tensor is missing, unknown or of another shape.
            ConfigError: if ``config.json`` says what this class cannot be.
        """
        from xpformer.interop.pretrained import load

        return load(source, backend=backend, dtype=dtype, seed=seed, revision=revision, expected=cls)

    def _mask(self, given: Any, shape: tuple[int, int], what: str) -> Any:
        """An ``attention_mask`` (B, T), boolean or 0 and 1 as in transformers, as booleans; none is none.

        Raises:
            ShapeError: if it is of another shape than ``shape``, that of ``what``, or has fractions.
        """
        if given is None:
            return None
        xp = self.backend.xp
        if tuple(given.shape) != shape or not xp.isdtype(given.dtype, ("bool", "integral")):
            raise ShapeError(
                f"{type(self).__name__}: attention_mask has shape {tuple(given.shape)} and dtype {given.dtype}, "
                f"expected bool or integers {shape}, as the {what}"
            )
        return xp.astype(given, xp.bool)

    def save_pretrained(self, directory: str | Path, **options: Any) -> Path:
        """Write the model to a new directory, which :func:`xpformer.load` reads, and Hugging Face too if it can.

        The options are those of :func:`xpformer.interop.pretrained.save`.

        Raises:
            CheckpointError: if something is there already, or it cannot be written.
        """
        from xpformer.interop.pretrained import save

        return save(self, directory, **options)


def check_images(model: Model, images: Any) -> None:
    """Raise :class:`ShapeError` unless ``images`` are (B, channels, image_size, image_size), of the weights' dtype."""
    c, kind = model.config, type(model).__name__
    if images.ndim != 4 or tuple(images.shape[1:]) != (c.channels, c.image_size, c.image_size):
        expected = f"(B, {c.channels}, {c.image_size}, {c.image_size})"
        raise ShapeError(f"{kind}: images have shape {tuple(images.shape)}, expected {expected}")
    if images.dtype != model.backend.dtype(model.dtype):
        raise ShapeError(f"{kind}: images are {dtype_name(images)}, the weights {model.dtype}; convert one of them")
