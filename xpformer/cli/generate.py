"""``xpformer generate``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpformer.cli.evaluate import step_option
from xpformer.cli.shell import (
    Command,
    backend_option,
    json_option,
    matmul_option,
    print_json,
    run_argument,
    say,
    unknown_option,
)

if TYPE_CHECKING:
    from xpformer.data.tokenizers import Tokenizer
    from xpformer.generation import Piece

_STDIN_LIMIT = 2**26
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@click.command(cls=Command)
@run_argument
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="What to go on from; may be repeated; - reads it from stdin. Default: a new line.",
)
@click.option("--tokens", type=int, default=200, show_default=True, metavar="N", help="How many to write.")
@click.option(
    "--temperature", type=float, default=1.0, show_default=True, help="Below 1 more likely text; 0: the likeliest."
)
@click.option("--top-k", type=int, default=0, metavar="K", help="Only the K likeliest tokens.")
@click.option("--top-p", type=float, default=1.0, metavar="P", help="Only the likeliest, up to P of the probability.")
@click.option("--min-p", type=float, default=0.0, metavar="P", help="Only tokens P times as likely as the likeliest.")
@click.option(
    "--repetition-penalty", type=float, default=1.0, metavar="R", help="Above 1: tokens that occurred are less likely."
)
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End before this text; may be repeated.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--samples", type=int, default=1, show_default=True, metavar="K", help="Continuations of each prompt.")
@click.option("--no-cache", is_flag=True, help="Keep no keys and values: slower, and the same text.")
@unknown_option
@step_option
@json_option
@backend_option
@matmul_option
def generate(
    run: Path,
    prompts: tuple[str, ...],
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    stops: tuple[str, ...],
    seed: int,
    samples: int,
    no_cache: bool,
    unknown: str,
    step: int | None,
    as_json: bool,
    backend: str | None,
    matmul_precision: str | None,
) -> None:
    """Text that a trained language model writes.

    RUN may be a Hugging Face directory of a GPT-2, or its name on the hub.

    It is printed as it is written, behind its prompt. All prompts and samples are one batch; of several, the first is
    shown while it grows and the others after it. Ctrl-C ends with what was written. A prompt may be as long as the
    model's context; a text that grows beyond it goes on from its last half.

    Examples:
      xpformer generate runs/gpt-shakespeare-1 --prompt "ROMEO:" --tokens 500 --temperature 0.8
      xpformer generate runs/gpt-shakespeare-1 --prompt "KING" --prompt "QUEEN" --samples 3 --top-k 20 --seed 7
      xpformer generate gpt2 --prompt "Hello, I am a language model," --temperature 0
      echo "To be, or not to be" | xpformer generate runs/gpt-shakespeare-1 --prompt - --stop "." --json
    """
    from xpformer.errors import RunError
    from xpformer.generation import Sampling, stream
    from xpformer.training.pretrained import open_model

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    trained = open_model(run, step=step, backend=backend, matmul_precision=matmul_precision, say=say)
    if not trained.reads_text:
        raise RunError(f"{run}: holds no language model; xpformer predict is for images")
    tokenizer = trained.tokenizer
    texts = _prompts(prompts, tokenizer)
    pieces = stream(
        trained.model,
        tokenizer,
        texts,
        tokens=tokens,
        stop=stops,
        unknown=unknown,
        sampling=sampling,
        seed=seed,
        samples=samples,
        use_cache=not no_cache,
    )
    if as_json:
        print_json(
            {
                "run": str(run),
                "step": trained.step,
                "backend": trained.model.backend.spec,
                "matmul_precision": trained.model.backend.matmul_precision,
                "seed": seed,
                "samples": _records(pieces, texts, samples),
            }
        )
    else:
        _write(pieces, texts, samples)


def default_prompt(tokenizer: Tokenizer) -> str:
    """A new line, or the first token of a vocabulary that has no new line."""
    return "\n" if b"\n" in tokenizer.tokens else tokenizer.decode([0])


def _prompts(given: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """The texts to go on from; without one a new line, or the first character of a vocabulary that has no new line."""
    if not given:
        return [default_prompt(tokenizer)]
    if given.count("-") > 1:
        raise click.UsageError("--prompt - reads stdin, which can be read once", click.get_current_context())
    return [_from_stdin() if text == "-" else text for text in given]


def _from_stdin() -> str:
    """All of stdin but its last line end, as the shell's $(...)."""
    from xpformer.errors import DataError

    data = sys.stdin.buffer.read(_STDIN_LIMIT + 1) if sys.stdin else b""
    if len(data) > _STDIN_LIMIT:
        raise DataError(f"stdin: has more than {_STDIN_LIMIT:,} bytes, which no prompt has")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: is not UTF-8: byte {error.start:,} is {data[error.start]:#04x}") from error


def _records(pieces: Iterator[Piece], texts: Sequence[str], samples: int) -> list[dict[str, Any]]:
    from xpformer.generation import collect

    return [
        {
            "prompt": texts[one.prompt],
            "sample": one.sample,
            "text": one.text,
            "tokens": list(one.tokens),
            "stop": one.stop,
        }
        for one in collect(pieces, len(texts), samples)
    ]


def _write(pieces: Iterator[Piece], texts: Sequence[str], samples: int) -> None:
    """The first row as it grows, then the others; an interruption leaves none of them out."""
    several = len(texts) * samples > 1
    later = {(p, s): texts[p] for p in range(len(texts)) for s in range(samples)}
    first = next(iter(later))
    opening = (_heading(*first) if several else "") + later.pop(first)
    try:
        _out(opening)
        for piece in pieces:
            if (piece.prompt, piece.sample) == first:
                _out(piece.text)
            else:
                later[piece.prompt, piece.sample] += piece.text
    finally:
        _out("\n")
        for row, text in later.items():
            _out(f"{_heading(*row)}{text}\n")


def _heading(prompt: int, sample: int) -> str:
    return f"---- prompt {prompt + 1}, sample {sample + 1}\n"


def _out(text: str) -> None:
    """Write at once; on a terminal without control characters, which could do anything to it."""
    if sys.stdout.isatty():
        text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:  # a terminal that is not UTF-8
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
