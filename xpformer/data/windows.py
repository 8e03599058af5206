r"""Windows of a row of tokens: what a language model reads, and what it has to say.

The window at s of a row t, for a context of T tokens, is an input and the targets, which are the same moved by one::

    x = t[s : s + T],    y = t[s + 1 : s + T + 1],    0 <= s <= len(t) - T - 1

Training draws s anywhere, or where a sentence begins; an evaluation takes s = 0, T, 2T, ..., so that each token but the
first is a target once.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from xpformer.data.tokenizers import Tokenizer
from xpformer.errors import DataError
from xpformer.rng import host_generator

Tokens = npt.NDArray[np.integer[Any]]

# A mark and the quotes and brackets that close behind it; in scripts with spaces also what separates, so that neither
# 3.14 nor "Mr.Smith" is an end.  An empty line ends a heading or a verse.
_SENTENCE_END = re.compile(
    r"""[.!?]+(?:["')\]]|”|’|»)*\s+ | (?:。|！|？|…)+(?:”|’|」|』|）)*\s* | \n\s*\n\s*""".encode(), re.VERBOSE
)


def check_windows(tokens: int, context: int, name: str) -> None:
    """Raise :class:`DataError` unless a row of ``tokens`` has a window and its targets."""
    if tokens < context + 1:
        raise DataError(
            f"{name}: has {tokens:,} tokens, a window needs {context + 1:,} (the context and one more); "
            "give a longer text, a smaller context or a larger share of it"
        )


def window_starts(
    step: int, batch_size: int, tokens: int, context: int, seed: int, starts: Tokens | None = None
) -> npt.NDArray[np.int64]:
    """Where the windows of step ``step`` begin: (batch_size,), independent and uniform.

    They are drawn from all places, or from ``starts``, those of sentences (those too near to the end are left out).
    A function of its arguments, so a run that resumes takes what the uninterrupted one took.  Raises
    :class:`DataError` when there is no place for a window.
    """
    check_windows(tokens, context, "the training text")
    draws = host_generator(seed, "windows", step)
    if starts is None:
        return draws.integers(0, tokens - context, batch_size)
    fitting = int(np.searchsorted(starts, tokens - context))
    if not fitting:
        raise DataError(f"the training text: no sentence begins {context + 1:,} tokens before its end; take any window")
    return np.asarray(starts[draws.integers(0, fitting, batch_size)], np.int64)


def windows(tokens: Tokens, starts: Tokens, context: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The inputs and targets of the windows at ``starts`` (B,): (B, T) and (B, T), new arrays."""
    places = np.asarray(starts, np.int64)[:, None] + np.arange(context + 1)
    rows = np.asarray(tokens[places], np.int64)  # (B, T + 1)
    return rows[:, :-1], rows[:, 1:]


def sentence_starts(tokens: Tokens, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """The tokens that hold the first character of a sentence, ascending, the first token of all among them.

    A sentence begins behind ``. ! ?`` and white space, behind ``。 ！ ？ …``, and behind an empty line.
    """
    text = tokenizer.decode_bytes(tokens)
    lengths = np.array([len(token) for token in tokenizer.tokens])
    first = np.concatenate([[0], np.cumsum(lengths[np.asarray(tokens, np.int64)])[:-1]])  # the first byte of each token
    begins = [0, *(match.end() for match in _SENTENCE_END.finditer(text) if match.end() < len(text))]
    return np.unique(np.searchsorted(first, begins, side="right") - 1)
