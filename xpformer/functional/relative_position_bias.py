r"""What Swin adds to the scores of attention in a window: one number for each head and each distance between two tokens
(Liu et al. 2021, section 3.2, equation 4, arXiv:2103.14030).

Forward.  In a window of h rows and w columns token i stands at row r(i) = floor(i / w) and column c(i) = i mod w.  From
key j to query i it is r(i) - r(j) rows down, one of 2 h - 1 numbers, and c(i) - c(j) columns across, one of 2 w - 1.
These distances, which have a sign, are numbered

    p(i, j) = (r(i) - r(j) + h - 1) (2 w - 1) + c(i) - c(j) + w - 1         (1)

from 0 to (2 h - 1) (2 w - 1) - 1, and row p of a table B holds a number for each head g.  M is added as it is: in the
windows n of a shifted grid a large negative number where i and j lay at opposite edges of it.

    y[n, g, i, j] = B[p(i, j), g] + M[n, i, j]                              (2)

Without M all windows have the same numbers, and y and the sum in (3) have no n.

Backward.  All pairs at one distance share a number, in all windows, so that their gradients add up:

    dB[q, g] = sum_n sum_ij 1[p(i, j) = q] dy[n, g, i, j]                   (3)
    dM[n, i, j] = sum_g dy[n, g, i, j]                                      (4)

(3) is the sum over n, then the scattered addition of `embedding`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xpformer.array import Array, device, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, both, check_shape, needs
from xpformer.functional.embedding import EmbeddingSaved, embedding


class RelativePositionBiasSaved(NamedTuple):
    """What the backward of :data:`relative_position_bias` needs."""

    window: tuple[int, int]  # for (1)
    has_mask: bool


def forward(
    table: Array, mask: Array | None = None, *, window: int | tuple[int, int]
) -> tuple[Array, RelativePositionBiasSaved]:
    """``y = B[p] + M``: table ((2h-1)(2w-1), H) -> y (H, hw, hw), or with mask (N, hw, hw) -> y (N, H, hw, hw).

    Args:
        table: B, a row for each distance, a column for each head.
        mask: M, numbers that are added for all heads.
        window: rows h and columns w of a window; a number is both.

    Raises:
        ShapeError: if the table or the mask is not that of such a window.
    """
    down, across = window = both(window)
    tokens = size(window)
    rows = distances(window)
    if table.ndim != 2 or table.shape[0] != rows:
        raise ShapeError(
            f"relative_position_bias: table has shape {tuple(table.shape)}, expected ({rows}, H), as many rows as "
            f"tokens in a window of {down} x {across} have distances"
        )
    xp = namespace(table)
    bias = xp.permute_dims(embedding(table, pair_index(table, window)), (2, 0, 1))  # (H, hw, hw)
    if mask is None:
        return bias, RelativePositionBiasSaved(window, False)
    if mask.ndim != 3:
        raise ShapeError(
            f"relative_position_bias: mask has shape {tuple(mask.shape)}, expected (N, {tokens}, {tokens})"
        )
    check_shape("relative_position_bias", "mask", mask, (mask.shape[0], tokens, tokens), "one matrix for each window")
    return bias + xp.expand_dims(mask, axis=1), RelativePositionBiasSaved(window, True)  # (2)


def distances(window: tuple[int, int]) -> int:
    """How many distances two tokens of a window can have: the rows of the table."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def pair_index(like: Array, window: tuple[int, int]) -> Array:
    """(1): int64 (hw, hw), where ``like`` lives."""
    xp = namespace(like)
    down, across = window
    where: dict[str, Any] = {"dtype": xp.int64, "device": device(like)}
    token = xp.arange(down * across, **where)
    place = (token // across) * (2 * across - 1) + token % across
    centre = (down - 1) * (2 * across - 1) + across - 1
    index: Array = xp.expand_dims(place, axis=1) - xp.expand_dims(place, axis=0) + centre  # place(i) - place(j)
    return index


def backward(dy: Array, saved: RelativePositionBiasSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dB``: the sum over all pairs at a distance; ``dM``: the sum over the heads."""
    xp = namespace(dy)
    dtable = dmask = None
    if needs(need, "table"):
        shared = xp.sum(dy, axis=0) if saved.has_mask else dy  # (H, hw, hw)
        kept = EmbeddingSaved(pair_index(dy, saved.window), distances(saved.window))
        dtable, _ = embedding.backward(xp.permute_dims(shared, (1, 2, 0)), kept)  # (3)
    if saved.has_mask and needs(need, "mask"):
        dmask = xp.sum(dy, axis=1)  # (4)
    return dtable, dmask


relative_position_bias = Op("relative_position_bias", forward, backward)
