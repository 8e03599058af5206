"""What the commands share: the group, common options, the two streams, JSON."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xpformer.errors import suggest

if TYPE_CHECKING:
    from rich.console import RenderableType

F = TypeVar("F", bound=Callable[..., Any])


def debug_option(function: F) -> F:
    """``--debug``, which :func:`xpformer.cli.main` looks for, wherever it stands."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(function)


def _keep_lines(text: str | None) -> str | None:
    """Help in which a paragraph that opens with a line like ``Examples:`` is not wrapped."""
    return text and re.sub(r"(?m)^([A-Z][a-z ]*:)$", "\b\n\\1", inspect.cleandoc(text))


class Command(click.Command):
    """A command that takes ``--debug``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _keep_lines(self.help)
        debug_option(self)


class Shell(click.Group):
    """A group whose commands take ``--debug`` and that knows what an unknown command was meant to be."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _keep_lines(self.help)
        debug_option(self)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest name in the error."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"unknown command {args[0]!r}; {suggest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are needed."""
        return list(self.commands)


# ---- options --------------------------------------------------------------------------------------------------------

DIRECTORY = click.Path(file_okay=True, path_type=Path)  # the library says what is wrong with a path


class DataPath(click.Path):
    """A path; ``folder:DIR`` is DIR."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Without the kind in front."""
        return super().convert(str(value).removeprefix("folder:"), param, ctx)


preset_option = click.option("--preset", metavar="NAME", help="Named settings of the recipe; see xpformer recipes.")
changes_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting; may be repeated. xpformer summary RECIPE --json lists every key.",
)
dtype_option = click.option("--dtype", default="float32", show_default=True, help="float32 or float64.")
depth_option = click.option(
    "--depth", type=click.IntRange(min=0), metavar="N", help="Levels of layers to show; default: all."
)
data_option = click.option(
    "--data",
    type=DataPath(file_okay=True, path_type=Path),
    metavar="DIR",
    help="Folder of the data set, or a text; folder:DIR has pictures, a subfolder a class; default: $XPFORMER_DATA, "
    "else the user cache.",
)
text_option = click.option(
    "--text", type=DIRECTORY, metavar="FILE", help="The text of a language model; the same as --data."
)
backend_option = click.option(
    "--backend", metavar="NAME", help="Array library and device, such as numpy or torch:cuda:0; see xpformer backends."
)
matmul_option = click.option(
    "--matmul-precision",
    metavar="highest|high",
    help="highest, the default: float32 exact; high: a GPU may use TF32, faster and with 10 bits of mantissa.",
)
recompute_option = click.option(
    "--recompute",
    is_flag=True,
    help="Blocks keep their input alone and run again in the backward: less memory, more time, the same result.",
)
threads_option = click.option(
    "--threads", type=int, metavar="N", help="Threads that compute; default: the CPUs this process may use."
)
sharing_option = click.option(
    "--sharing",
    metavar="batch|operations",
    help="What threads share; default: operations where their gradients would be more bytes than the activations.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program, and draw nothing.")
unknown_option = click.option(
    "--unknown",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Characters of a prompt that the model does not know.",
)
run_argument = click.argument("run", type=DIRECTORY, metavar="RUN")


def data_or_text(data: Path | None, text: Path | None) -> Path | None:
    """What ``--data`` or ``--text`` names; raises :class:`click.UsageError` where both are given."""
    if data is not None and text is not None:
        raise click.UsageError("--data and --text are the same; give one", click.get_current_context())
    return data if text is None else text


# ---- streams --------------------------------------------------------------------------------------------------------


def say(message: str) -> None:
    """A note: one line on stderr."""
    print(" ".join(message.splitlines()), file=sys.stderr, flush=True)


def fail(message: str, code: int) -> int:
    """The one line of an error; returns the exit code."""
    say(f"xpformer: error: {message}")
    return code


def check_writable(file: Path) -> None:
    """Raise :class:`DataError` where ``file`` could not be written: before the work, not after it."""
    from xpformer.errors import DataError

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror or error}; name another file") from error


def plain_output(stream: Any) -> bool:
    """Whether ``stream`` takes plain lines only: no terminal, ``TERM=dumb`` or ``NO_COLOR``."""
    return not stream.isatty() or os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))


def show(*renderables: RenderableType) -> None:
    """Print text and tables on stdout; plain text, 120 columns wide, where it is no terminal."""
    from rich.console import Console

    if not plain_output(sys.stdout):
        Console(highlight=False).print(*renderables, sep="\n")
        return
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, no_color=True, force_terminal=False, width=width)
    with console.capture() as captured:
        console.print(*renderables, sep="\n")
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_json(document: object) -> None:
    """``document`` as JSON on stdout; what is not finite becomes null."""
    click.echo(json.dumps(jsonable(document), indent=2, ensure_ascii=False))


def jsonable(value: Any) -> Any:
    """What is not finite as null, keys as text, arrays' numbers as numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value.item() if hasattr(value, "item") else value
