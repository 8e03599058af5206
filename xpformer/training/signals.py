"""Ctrl-C and SIGTERM: the first finishes the step and saves, the second ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from xpformer.errors import XpformerError


class Interrupted(XpformerError):  # noqa: N818  (a stop that was asked for is no error)
    """Training was asked to stop, and has saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def name(self) -> str:
        """``SIGINT`` or ``SIGTERM``."""
        return signal.Signals(self.signal_number).name if self else ""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A flag that the first SIGINT or SIGTERM sets; a second signal does what it did before.

    A signal that the process was started to ignore (SIGINT of a background job) stays ignored.  Python lets
    only the main thread set signal handlers; in another thread the flag is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        for other, handler in before.items():
            signal.signal(other, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
