"""Files from the first mirror that serves them whole: staged, checked, then moved into place in one rename."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from xpformer.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two pieces of an answer
_CHUNK = 2**16


def download(checks: Mapping[str, Callable[[Path], object]], folder: Path, mirrors: Sequence[str]) -> list[str]:
    """Download each file named in ``checks`` from ``mirrors`` (folders of the web) into ``folder``.

    ``checks[name](path)`` raises :class:`DataError` when what came is not the file.  A mirror that fails once is left;
    the result says why each did, and a file that no mirror served is missing from ``folder``.  Progress goes to
    stderr.  Two processes may download at once.  Raises :class:`DataError` when pooch is missing or ``folder`` cannot
    be written.
    """
    try:
        import pooch
    except ImportError as error:
        raise DataError('download: needs pooch, which is missing: pip install "xpformer[recipes]"') from error
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    reasons: list[str] = []
    left = list(mirrors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as staging,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            for name, check in checks.items():
                staged = Path(staging) / name
                while left:
                    bar = _Bar(progress, f"{name} from {urlsplit(left[0]).hostname}")
                    fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK, timeout=TIMEOUT)
                    try:
                        fetch(left[0].rstrip("/") + "/" + name, str(staged), None)
                        check(staged)
                    except (OSError, DataError) as error:  # every error of requests is an OSError
                        bar.close()
                        reasons.append(f"{urlsplit(left.pop(0)).netloc}: {_reason(error, name)}")
                    else:
                        staged.replace(folder / name)
                        break
    except OSError as error:
        raise DataError(f"{folder}: the download cannot be written: {error.strerror or error}") from error
    return reasons


def _reason(error: Exception, name: str) -> str:
    """Why a mirror failed, in a few words."""
    if isinstance(error, DataError):
        return str(error).partition(f"{name}: ")[2] or str(error)
    response = getattr(error, "response", None)
    if response is not None:
        return f"answers {response.status_code}"
    return getattr(error, "strerror", None) or type(error).__name__


class _Bar:
    """One line of a rich progress display, in the form that pooch drives."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task(label, total=None)
        self._total = 0

    @property
    def total(self) -> int:
        """Bytes to come; 0 when the mirror does not say."""
        return self._total

    @total.setter
    def total(self, size: int) -> None:
        self._total = size
        self._progress.update(self._task, total=size or None)

    def update(self, size: int) -> None:
        """``size`` more bytes have come."""
        self._progress.update(self._task, advance=size)

    def reset(self) -> None:
        """Begin again at nothing."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Stop the clock."""
        self._progress.stop_task(self._task)
