"""Initial values of parameters and fixed position tables, computed on the host in float64."""

from __future__ import annotations

import math

import numpy as np

from xpformer.errors import ConfigError
from xpformer.parameters import Initializer


def zeros(_generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All zero: biases."""
    return np.zeros(shape)


def ones(_generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All one: the weight of a norm."""
    return np.ones(shape)


def normal(std: float) -> Initializer:
    """N(0, std²)."""
    return lambda generator, shape: std * generator.standard_normal(shape)


def truncated_normal(std: float, bound: float = 2.0) -> Initializer:
    """N(0, std²) without the values beyond ``bound`` standard deviations (drawn again until inside)."""

    def init(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = generator.standard_normal(shape)
        outside = np.abs(values) > bound
        while outside.any():
            values[outside] = generator.standard_normal(int(outside.sum()))
            outside = np.abs(values) > bound
        return std * values

    return init


def xavier_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) for a weight (in, out) (Glorot and Bengio 2010, eq. 16)."""
    bound = math.sqrt(6.0 / (shape[0] + shape[1]))
    return generator.uniform(-bound, bound, shape)


def lecun_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """U(-a, a) with a = 1 / sqrt(fan_in): the reference's linear layers; shape (in, out) or (O, C, kh, kw)."""
    fan_in = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    bound = 1.0 / math.sqrt(fan_in)
    return generator.uniform(-bound, bound, shape)


def he_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 2 / fan_in) for a convolution (O, C, kh, kw) that a ReLU follows (He et al. 2015, eq. 10)."""
    fan_in = math.prod(shape[1:])
    return math.sqrt(2.0 / fan_in) * generator.standard_normal(shape)


def sincos1d(length: int, dim: int) -> np.ndarray:
    """``sin(t / 10000^(2i/D))`` at column 2i, the cosine beside it at 2i + 1 (Vaswani et al. 2017, section 3.5)."""
    column = np.arange(dim)
    angle = np.arange(length)[:, None] / 10000.0 ** ((column - column % 2) / dim)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle))


def sincos2d(rows: int, columns: int, dim: int) -> np.ndarray:
    """Row positions in the first half of the columns, column positions in the second, each sines then cosines.

    Chen, Xie and He 2021 (MoCo v3), section 4.3; ``dim`` is a multiple of 4.
    """
    if dim % 4:
        raise ConfigError(f"sincos2d positions need a width that is a multiple of 4, got {dim}")
    frequency = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")).reshape(2, -1, 1)
    angle = grid * frequency  # (2, rows * columns, dim / 4)
    return np.concatenate([np.sin(angle[0]), np.cos(angle[0]), np.sin(angle[1]), np.cos(angle[1])], axis=1)


def position_table(kind: str, grid: tuple[int, int], dim: int, *, token: bool) -> np.ndarray:
    """The fixed table (tokens, dim) of a grid of patches; a class token in front has position zero in 2-D."""
    rows, columns = grid
    if kind == "sincos1d":
        return sincos1d(rows * columns + token, dim)
    fixed = sincos2d(rows, columns, dim)
    return np.concatenate([np.zeros((1, dim)), fixed]) if token else fixed


def shift_mask(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], apart: float) -> np.ndarray:
    """``apart`` between tokens of a window that lay at opposite edges of the grid, else 0: (windows, tokens, tokens).

    The grid was turned by ``shift`` to the top left, so that its first rows and columns stand last; the last window of
    a row or column holds both edges.
    """
    down, across = (np.arange(n) >= n - s for n, s in zip(grid, shift, strict=True))
    edge = down[:, None] + 2 * across  # (H, W)
    edge = edge.reshape(grid[0] // window[0], window[0], grid[1] // window[1], window[1]).swapaxes(1, 2)
    edge = edge.reshape(-1, window[0] * window[1])  # (windows, tokens)
    return np.where(edge[:, :, None] == edge[:, None, :], 0.0, apart)


def resize_positions(table: np.ndarray, old: tuple[int, int], new: tuple[int, int], *, token: bool) -> np.ndarray:
    """A learned table (tokens, dim) of a grid of ``old`` rows and columns for one of ``new``; a class token stays.

    Bicubic as torch's ``interpolate(..., mode="bicubic", align_corners=False)``, and so as transformers does it.
    """
    front, grid = table[: int(token)], np.reshape(table[int(token) :], (*old, table.shape[1])).astype(np.float64)
    rows, columns = (bicubic(a, b) for a, b in zip(old, new, strict=True))
    resized = np.einsum("ra,cb,abd->rcd", rows, columns, grid, optimize=True)
    return np.concatenate([front, np.reshape(resized, (-1, table.shape[1])).astype(table.dtype)])


def resize_distances(table: np.ndarray, old: int, new: int) -> np.ndarray:
    """A table of relative position biases, ((2 old - 1)², heads), of square windows for those of ``new`` rows.

    A smaller window keeps the distances that it has; for a larger one the table is interpolated, as Swin's code does.
    """
    sides = 2 * old - 1, 2 * new - 1
    if new > old:
        return resize_positions(table, (sides[0],) * 2, (sides[1],) * 2, token=False)
    edge = old - new
    square = np.reshape(table, (sides[0], sides[0], -1))[edge : edge + sides[1], edge : edge + sides[1]]
    return np.reshape(square, (sides[1] ** 2, -1))


def bicubic(old: int, new: int) -> np.ndarray:
    """(new, old): the weights of the old points in each new one (Keys 1981, equation 4, with a = -0.75).

    New point i lies at (i + 1/2) old / new - 1/2 and takes the four points around it; beyond an edge that of the edge.
    """
    a = -0.75
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        point = np.floor(place) + tap
        x = np.abs(place - point)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(point, 0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return weights
