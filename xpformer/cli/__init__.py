"""The command line: a thin shell over the library.

Results go to stdout, progress and notes to stderr.  Exit codes: :mod:`xpformer.errors`.  Every command imports what it
needs when it runs, so that ``xpformer --help`` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from xpformer.cli.agree import agree, diverge
from xpformer.cli.conformance import conformance
from xpformer.cli.convert import convert
from xpformer.cli.evaluate import evaluate
from xpformer.cli.generate import generate
from xpformer.cli.inspect import backends, gradcheck, summary
from xpformer.cli.plot import plot
from xpformer.cli.predict import predict
from xpformer.cli.profile import profile
from xpformer.cli.recipes import recipes
from xpformer.cli.shell import Shell, fail, say
from xpformer.cli.train import resume, train
from xpformer.errors import XpformerError

__all__ = ["cli", "main", "run_recipe"]


@click.group(cls=Shell, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xpformer", message="xpformer %(version)s")
def cli() -> None:
    """Transformers with hand-written backward passes, on any array library.

    Begin with:
      xpformer train vit-digits              a ViT on 1,797 small digits, under two minutes
      xpformer evaluate runs/vit-digits-1    its accuracy on the test images
      xpformer predict runs/vit-digits-1 --first 12
      xpformer recipes                       what else there is to train

    Every command has a --help with examples. A run is a directory that holds all of itself: settings, log,
    checkpoints, pictures. Nothing is ever written over.
    """


_COMMANDS = (
    *(train, resume, evaluate, predict, generate, convert, plot),
    *(recipes, summary, profile, backends, gradcheck, agree, diverge, conformance),
)
for _command in _COMMANDS:
    cli.add_command(_command)


def run_recipe(file: str | Path) -> NoReturn:
    """``python my_recipe.py ...`` is ``xpformer train my_recipe.py ...``."""
    main(["train", str(file), *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit."""
    nowhere = Path(os.devnull)  # a stream that was closed before we began is None
    sys.stdout, sys.stderr = sys.stdout or nowhere.open("w"), sys.stderr or nowhere.open("w")
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if "_XPFORMER_COMPLETE" in os.environ:
        cli.main(arguments, prog_name="xpformer")
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    """The exit code; everything that can go wrong becomes one line on stderr."""
    try:
        with cli.make_context("xpformer", arguments) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # who read our output has left, as ``head`` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        say("xpformer: interrupted; what was saved is intact")
        return 130
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _report(error, debug="--debug" in arguments)
    return 0


def _report(error: Exception, *, debug: bool) -> int:
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "xpformer"
        message = error.format_message().removesuffix(".")
        return fail(f"{message[:1].lower()}{message[1:]}; see {command} --help", 2)
    if isinstance(error, click.ClickException):
        return fail(error.format_message(), 2)
    if isinstance(error, XpformerError):
        if error.exit_code > 128:  # asked to stop, and saved
            say(f"xpformer: {error}")
            return error.exit_code
        return fail(str(error), error.exit_code)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return fail(f"{error.filename or 'the output'}: cannot be written: {error.strerror}; free some space", 2)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return fail(f"{error.filename}: {error.strerror}; take a shorter one", 2)
    if isinstance(error, MemoryError):
        return fail(f"out of memory: {error or 'an array does not fit'}; take a smaller train.batch_size or model", 2)
    place = "" if debug else f"; the traceback is in {_crash_log(error)}"
    return fail(f"a defect of xpformer: {type(error).__name__}: {error}{place}", 1)


def _crash_log(error: Exception) -> str:
    """The file with the traceback of an error that nobody foresaw."""
    import platform
    import tempfile

    import xpformer

    try:
        with tempfile.NamedTemporaryFile("w", prefix="xpformer-crash-", suffix=".log", delete=False) as file:
            file.write(f"xpformer {xpformer.__version__}, Python {platform.python_version()}\n")
            file.writelines(traceback.format_exception(error))
    except OSError:
        return "no file, for none could be written (try --debug)"
    return file.name
