r"""Text from a language model, one token after the other.

The model gives logits l of the next token; from them, in this order (that of Hugging Face's ``generate``):

1. repetition penalty r: of tokens that were seen, l > 0 becomes l / r, l < 0 becomes l r (Keskar et al., "CTRL", 2019);
2. temperature t: l / t; with t = 0 the largest logit is taken, and the steps below are not;
3. top-k: only the k largest stay (Fan et al., "Hierarchical Neural Story Generation", 2018);
4. top-p: only the smallest set of the likeliest tokens whose probability together is at least p
   (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020);
5. min-p: only tokens at least p times as likely as the likeliest (Nguyen et al., "Turning Up the Heat", 2024);
6. the token is the first whose cumulated probability is above a uniform number u of [0, 1).

All of it is done in float64 on the host, and u is a function of (seed, sample, position in the text).  So a prompt's
continuation depends neither on the other prompts of the batch nor on the backend, as far as the logits do not.

**Beyond the context.**  A model reads ``context`` tokens at most.  When a text is longer, it reads the last half of its
context and goes on from there: then a cache of keys and values has to be made anew once in context / 2 tokens, where
moving on by one token each time would do it for each, since every position changes.  With and without a cache, the
model reads the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xpformer.array import HostArray
from xpformer.errors import ConfigError, ShapeError
from xpformer.layers import Context
from xpformer.rng import host_generator

if TYPE_CHECKING:
    from xpformer.data.tokenizers import Tokenizer

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults draw from the model's own distribution.

    ``temperature`` 0 takes the likeliest, ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 are off.
    Raises :class:`ConfigError` for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        def check(name: str, fine: bool, expected: str) -> None:
            if not fine:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {expected}")

        check("temperature", 0 <= self.temperature < math.inf, "a number from 0 (the likeliest token)")
        check("top_k", type(self.top_k) is int and self.top_k >= 0, "a whole number from 1, or 0 for all tokens")
        check("top_p", 0 < self.top_p <= 1, "a probability above 0, up to 1 for all tokens")
        check("min_p", 0 <= self.min_p <= 1, "a share from 0 (all tokens) to 1")
        check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0, 1 for none")
        chosen = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) != getattr(Sampling, name)]
        if self.temperature == 0 and chosen:
            raise ConfigError(f"temperature 0 takes the likeliest token, so {' and '.join(chosen)} can do nothing")


# ---- from logits to a token -----------------------------------------------------------------------------------------


def penalize(logits: Logits, seen: npt.NDArray[np.integer[Any]], penalty: float) -> Logits:
    """l / r where l > 0 and l r elsewhere, of the tokens ``seen``: (V,)."""
    changed = logits.copy()
    repeated = logits[seen]
    changed[seen] = np.where(repeated > 0, repeated / penalty, repeated * penalty)
    return changed


def keep_top_k(logits: Logits, k: int) -> Logits:
    """The ``k`` largest logits and those equal to the least of them; the others become -inf: (V,)."""
    if k >= len(logits):
        return logits
    least = np.partition(logits, -k)[-k]
    return np.where(logits < least, -np.inf, logits)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """The likeliest tokens until their probability together is at least ``p``; the others become -inf: (V,).

    One token always stays.  Of tokens that are equally likely, those of smaller id come first.
    """
    order = np.argsort(-logits, kind="stable")
    likelier = np.concatenate([[0.0], np.cumsum(softmax(logits)[order])[:-1]])  # the probability of all that are
    kept = order[likelier < p]
    result = np.full_like(logits, -np.inf)
    result[kept] = logits[kept]
    return result


def keep_min_p(logits: Logits, p: float) -> Logits:
    """The tokens at least ``p`` times as likely as the likeliest; the others become -inf: (V,)."""
    probabilities = softmax(logits)
    return np.where(probabilities < p * probabilities.max(), -np.inf, logits)


def softmax(logits: Logits) -> Logits:
    """exp(l - max l), divided by its sum: (V,)."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def choose(logits: Logits, seen: npt.NDArray[np.integer[Any]], sampling: Sampling, u: float) -> int:
    """The next token: the six steps above for one row of logits (V,) and the tokens seen so far.

    Raises :class:`~xpformer.errors.ConfigError` when a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ConfigError("the model's logits are not finite; take a checkpoint of an earlier step")
    if sampling.repetition_penalty != 1:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature gives 0 for the largest and -inf for the others
        logits = (logits - logits.max()) / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    total = np.cumsum(softmax(logits))
    return int(np.searchsorted(total, u * total[-1], side="right"))


# ---- from prompts to tokens -----------------------------------------------------------------------------------------


def generate_tokens(
    model: Any,
    prompts: Sequence[npt.ArrayLike],
    *,
    tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    samples: int = 1,
    vocabulary: int | None = None,
    use_cache: bool = True,
) -> Iterator[npt.NDArray[np.int64]]:
    """The next token of every row, ``tokens`` times: (prompts * samples,), the samples of a prompt side by side.

    Args:
        model: a :class:`~xpformer.models.GPT`, on any backend.
        prompts: the ids of each, at least one and at most the model's context; they may differ in length.
        tokens: how many to write.
        sampling: how they are chosen.
        seed: of the choices.
        samples: continuations of each prompt.
        vocabulary: ids that may be chosen; by default all that the model has.
        use_cache: keep keys and values, so that each token costs one token's work.

    Raises:
        ConfigError: if an option is out of range, or a prompt is empty or longer than the context.
        ShapeError: if a prompt is not a row of ids of the vocabulary.
    """
    vocabulary = model.config.vocabulary if vocabulary is None else min(vocabulary, model.config.vocabulary)
    for name, value, least in (("tokens", tokens, 0), ("samples", samples, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ConfigError(f"{name} is {value!r}, expected a whole number from {least}")
    checked = [_check_prompt(np.asarray(prompt), model.config.context, vocabulary) for prompt in prompts]
    texts = [prompt.tolist() for prompt in checked for _ in range(samples)]
    return _rows(_Reader(model, texts, use_cache), tokens, sampling or Sampling(), seed, samples, vocabulary)


def _check_prompt(prompt: HostArray, context: int, vocabulary: int) -> HostArray:
    if prompt.ndim != 1 or (prompt.size and prompt.dtype.kind not in "iu"):
        raise ShapeError(f"a prompt is {prompt.dtype} of shape {prompt.shape}, expected integers of shape (n,)")
    if not prompt.size:
        raise ConfigError("a prompt is empty; give at least one token to go on from")
    if not 0 <= prompt.min() <= prompt.max() < vocabulary:
        raise ShapeError(f"a prompt has ids from {prompt.min()} to {prompt.max()}, expected 0 to {vocabulary - 1}")
    if len(prompt) > context:
        raise ConfigError(
            f"a prompt has {len(prompt):,} tokens, but the model reads at most {context:,} at once; shorten it"
        )
    return prompt


def _rows(
    reader: _Reader, tokens: int, sampling: Sampling, seed: int, samples: int, vocabulary: int
) -> Iterator[npt.NDArray[np.int64]]:
    for _ in range(tokens):
        logits = reader.logits()[:, :vocabulary]
        chosen = []
        for row, text in enumerate(reader.texts):
            u = host_generator(seed, "generation", row % samples, len(text)).random()
            chosen.append(choose(logits[row], np.unique(text), sampling, u))
        reader.append(chosen)
        yield np.array(chosen)


class _Reader:
    """Rows of tokens that grow, and the model's logits of what comes next in each.

    Rows of different lengths are one batch, padded on the left, where the attention mask hides it.
    """

    def __init__(self, model: Any, texts: list[list[int]], use_cache: bool) -> None:
        self.model, self.texts, self.use_cache = model, texts, use_cache
        self.lengths = [len(text) for text in texts]  # how many tokens at the end of each text the model reads
        self.unread: int | None = None  # tokens at the end of each row that the cache lacks; None: all
        self.cache: Any = None

    def append(self, tokens: Sequence[int]) -> None:
        """One token more in each row."""
        context = self.model.config.context
        for row, token in enumerate(tokens):
            self.texts[row].append(token)
            self.lengths[row] += 1
            if self.lengths[row] > context:
                self.lengths[row] = max(context // 2, 1)
                self.unread = None

    def logits(self) -> Logits:
        """The logits of the next token of each row: (B, V), float64, on the host."""
        model, backend = self.model, self.model.backend
        width = max(self.lengths)
        if self.use_cache and self.unread is None:
            self.cache = model.new_cache(len(self.texts))
        new = width if not self.use_cache or self.unread is None else self.unread
        real = np.arange(width) >= width - np.array(self.lengths)[:, None]  # (B, W): False where it is padding
        ids = np.zeros((len(self.texts), width), np.int64)
        for row, length in enumerate(self.lengths):
            ids[row, width - length :] = self.texts[row][-length:]
        mask = None if real.all() else backend.asarray(real[:, width - new :])
        ctx = Context(backend, cache=self.cache)
        logits = model.forward(backend.asarray(ids[:, width - new :]), ctx, attention_mask=mask, last_only=True)
        self.unread = 1
        return np.asarray(backend.to_numpy(logits), np.float64)  # (B, V)


# ---- from text to text ----------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """What a sample grew by."""

    prompt: int
    sample: int
    text: str
    tokens: tuple[int, ...]
    stop: str | None = None
    """The stop text that ended the sample."""


@dataclass(frozen=True)
class Generated:
    """One continuation of one prompt."""

    prompt: int
    sample: int
    text: str
    tokens: tuple[int, ...]
    stop: str | None


def stream(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    tokens: int,
    stop: Sequence[str] = (),
    unknown: Any = "error",
    sampling: Sampling | None = None,
    seed: int = 0,
    samples: int = 1,
    use_cache: bool = True,
) -> Iterator[Piece]:
    """The continuations of ``prompts`` as they are written; all rows take part in each step.

    A piece's text has whole characters only.  With ``stop``, a sample ends before the first of these texts, which is
    not part of it, and what might become one is held back until it is known.  ``unknown`` is what
    :meth:`~xpformer.data.tokenizers.Tokenizer.encode` does with characters of a prompt that it does not know.  The
    other arguments, and what is raised, are those of :func:`generate_tokens`.
    """
    if not prompts:
        raise ConfigError("there is no prompt; give at least one")
    if not all(stop):
        raise ConfigError("a stop text is empty; give at least one character")
    ids = [tokenizer.encode(prompt, unknown=unknown) for prompt in prompts]
    steps = generate_tokens(
        model,
        ids,
        tokens=tokens,
        sampling=sampling,
        seed=seed,
        samples=samples,
        vocabulary=tokenizer.size,
        use_cache=use_cache,
    )
    return _pieces(steps, [_Writer(tokenizer, stop) for _ in range(len(prompts) * samples)], samples)


def _pieces(steps: Iterator[npt.NDArray[np.int64]], writers: list[_Writer], samples: int) -> Iterator[Piece]:
    for chosen in steps:
        for row, (writer, token) in enumerate(zip(writers, chosen.tolist(), strict=True)):
            if writer.stop is None:
                yield Piece(*divmod(row, samples), writer.push(token), (token,), writer.stop)
        if all(writer.stop is not None for writer in writers):
            return
    for row, writer in enumerate(writers):
        if writer.stop is None and (text := writer.finish()):
            yield Piece(*divmod(row, samples), text, (), writer.stop)


def generate(model: Any, tokenizer: Tokenizer, prompts: Sequence[str], **options: Any) -> list[Generated]:
    """The continuations of ``prompts``, the samples of a prompt side by side; options as of :func:`stream`."""
    return collect(stream(model, tokenizer, prompts, **options), len(prompts), options.get("samples", 1))


def collect(pieces: Iterable[Piece], prompts: int, samples: int) -> list[Generated]:
    """The pieces of each sample put together, the samples of a prompt side by side."""
    rows: dict[tuple[int, int], list[Piece]] = {(p, s): [] for p in range(prompts) for s in range(samples)}
    for piece in pieces:
        rows[piece.prompt, piece.sample].append(piece)
    return [
        Generated(
            *row,
            "".join(piece.text for piece in grown),
            tuple(token for piece in grown for token in piece.tokens),
            grown[-1].stop if grown else None,
        )
        for row, grown in rows.items()
    ]


class _Writer:
    """The text of one row: whole characters, up to the first stop text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._stream, self._stops = tokenizer.stream(), stops
        self._held = ""
        self.stop: str | None = None

    def push(self, token: int) -> str:
        """What can be written now that ``token`` has come."""
        return self._release(self._stream.push(token), final=False)

    def finish(self) -> str:
        """What is left at the end."""
        return self._release(self._stream.finish(), final=True)

    def _release(self, more: str, *, final: bool) -> str:
        text = self._held + more
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.stop = min(found)
            return text[:place]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
