"""What can go wrong, as exceptions whose message is one line a user can act on.

Every message says what is wrong, what was expected and what was found, and how to repair it.  The command line
prints it without a traceback and exits with :attr:`XpformerError.exit_code`; the library raises it.

===== =========================================================================
exit  meaning
===== =========================================================================
0     done
1     a defect of xpformer (any exception that is not an ``XpformerError``)
2     something the user can repair: input, options, files, a missing backend
3     training stopped because a number was not finite
130   interrupted (Ctrl-C), saved
143   terminated (SIGTERM), saved
===== =========================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XpformerError(Exception):
    """Base of every error that xpformer raises on purpose."""

    exit_code = 2


class ShapeError(XpformerError, ValueError):
    """An array has another shape, rank or dtype than the operation or layer takes."""


class ConfigError(XpformerError, ValueError):
    """A configuration is unknown, out of range or contradicts itself."""


class DataError(XpformerError, ValueError):
    """A data set or an input file is missing, damaged, swapped or of another kind."""


class CheckpointError(XpformerError):
    """A checkpoint is missing, damaged, newer than this version, or belongs to another model."""


class RunError(XpformerError):
    """A run directory exists already, is in use, cannot be written, or is not a run."""


class BackendError(XpformerError):
    """An array library is unknown, not installed, or has no usable device."""


class TapeError(XpformerError, RuntimeError):
    """A backward pass does not mirror its forward pass."""


class NonFiniteError(XpformerError):
    """A loss or a gradient is not finite; the weights are those of the last good step."""

    exit_code = 3


def suggest(name: str, options: Iterable[str]) -> str:
    """The end of an "unknown name" message: the nearest option, else all of them."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.55)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + ", ".join(known) if known else "none are known"
