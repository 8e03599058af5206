from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conftest import backend_or_skip
from xpformer.data.tokenizers import Bytes, Characters
from xpformer.errors import ConfigError, DataError, ShapeError
from xpformer.generation import (
    Sampling,
    choose,
    collect,
    generate,
    generate_tokens,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize,
    softmax,
    stream,
)
from xpformer.models.gpt import GPT, GPTConfig

TOKENIZER = Characters("abcdefghij\n")
CONFIG = GPTConfig.preset("tiny", vocabulary=TOKENIZER.size)


def model(backend: str = "numpy", dtype: str = "float64", **changes: Any) -> GPT:
    return GPT(replace(CONFIG, **changes), seed=0).to(backend_or_skip(backend), dtype)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return model()


class Script:
    """A model that says what it is told: the id after n tokens is ``script[n]``, whatever was read."""

    def __init__(self, script: list[int], vocabulary: int, context: int = 64) -> None:
        from xpformer.backend import get_backend

        self.backend, self.script = get_backend("numpy"), script
        self.config = GPTConfig.preset("tiny", vocabulary=vocabulary, context=context)
        self.widths: list[int] = []

    def new_cache(self, batch: int) -> None:
        raise AssertionError("asked for without a cache only")

    def forward(self, ids: Any, ctx: Any, *, attention_mask: Any = None, last_only: bool = False) -> Any:
        self.widths.append(ids.shape[1])
        logits = np.zeros((len(ids), self.config.vocabulary))
        logits[:, self.script[len(self.widths) - 1]] = 50.0
        return logits


# The choice, against Hugging Face


def rows(rng: np.random.Generator) -> np.ndarray:
    return 3 * rng.standard_normal((20, 37))


def warp(processor: Any, logits: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
    import torch

    seen = torch.zeros((len(logits), 0), dtype=torch.int64) if ids is None else torch.from_numpy(ids)
    return np.asarray(processor(seen, torch.from_numpy(logits)).numpy())


@pytest.mark.parametrize("k", [1, 2, 7, 36, 37, 50])
def test_top_k_is_that_of_transformers(rng: np.random.Generator, k: int) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = rows(rng)
    np.testing.assert_array_equal([keep_top_k(r, k) for r in logits], warp(process.TopKLogitsWarper(k), logits))
    tied = np.round(logits)
    np.testing.assert_array_equal([keep_top_k(r, k) for r in tied], warp(process.TopKLogitsWarper(k), tied))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_is_that_of_transformers(rng: np.random.Generator, p: float) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = rows(rng)
    np.testing.assert_array_equal([keep_top_p(r, p) for r in logits], warp(process.TopPLogitsWarper(p), logits))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 1.0])
def test_min_p_is_that_of_transformers(rng: np.random.Generator, p: float) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = rows(rng)
    np.testing.assert_array_equal([keep_min_p(r, p) for r in logits], warp(process.MinPLogitsWarper(p), logits))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_penalty_is_that_of_transformers(rng: np.random.Generator, penalty: float) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, ids = rows(rng), rng.integers(0, 37, (20, 9))
    theirs = warp(process.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    np.testing.assert_array_equal(
        [penalize(r, np.unique(s), penalty) for r, s in zip(logits, ids, strict=True)], theirs
    )


def test_all_steps_together_leave_what_transformers_leaves(rng: np.random.Generator) -> None:
    """With u in the middle of each step of the cumulated probabilities, every token that stays is chosen, no other."""
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, ids = rows(rng), rng.integers(0, 37, (20, 9))
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2)
    theirs = warp(process.RepetitionPenaltyLogitsProcessor(1.2), logits, ids)
    for processor in (
        process.TemperatureLogitsWarper(0.7),
        process.TopKLogitsWarper(20),
        process.TopPLogitsWarper(0.9),
        process.MinPLogitsWarper(0.02),
    ):
        theirs = warp(processor, theirs)
    for row, (scores, seen) in enumerate(zip(logits, ids, strict=True)):
        probabilities = softmax(theirs[row])
        middle = np.cumsum(probabilities) - probabilities / 2
        for token in range(37):
            found = choose(scores, np.unique(seen), sampling, float(middle[token]))
            assert (found == token) == (probabilities[token] > 0)


def test_equally_likely_tokens_stay_by_their_ids() -> None:
    assert np.flatnonzero(np.isfinite(keep_top_p(np.zeros(4), 0.5))).tolist() == [0, 1]
    assert np.flatnonzero(np.isfinite(keep_top_p(np.zeros(4), 0.51))).tolist() == [0, 1, 2]


def test_the_uniform_number_picks_in_proportion() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.25]))
    picks = [choose(logits, np.array([0]), Sampling(), u) for u in (0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53)]
    assert picks == [0, 0, 1, 1, 2, 2]


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    logits = np.array([1.0, 3.0, 2.0])
    for temperature in (0.0, 5e-324, 1e-300, 1e-3):
        assert choose(logits, np.array([0]), Sampling(temperature=temperature), 0.999) == 1


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="the model's logits are not finite"):
        choose(np.array([0.0, np.nan]), np.array([0]), Sampling(), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected a number from 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"temperature": 0, "top_k": 5, "top_p": 0.9}, "so top_k and top_p can do nothing"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**options)
    assert message in str(caught.value)


# Rows of tokens

PROMPTS = ("a", "bcd", "efghij", "a\nb\ncd\ne")
MANY = 30  # beyond the context of 8 several times


@pytest.mark.parametrize("positions", ["learned", "sincos1d", "rotary", "none"])
def test_a_cache_changes_nothing(positions: str) -> None:
    written = model(positions=positions)
    options: dict[str, Any] = {"tokens": MANY, "samples": 2, "seed": 3}
    cached = generate(written, TOKENIZER, PROMPTS, **options)
    assert cached == generate(written, TOKENIZER, PROMPTS, use_cache=False, **options)
    assert all(len(one.tokens) == MANY for one in cached)


def test_a_prompt_is_continued_as_it_is_alone(gpt: GPT) -> None:
    together = generate(gpt, TOKENIZER, PROMPTS, tokens=MANY, samples=3)
    for number, prompt in enumerate(PROMPTS):
        alone = generate(gpt, TOKENIZER, [prompt], tokens=MANY, samples=2)
        assert [one.tokens for one in alone] == [one.tokens for one in together if one.prompt == number][:2]


@pytest.mark.parametrize("name", ["numpy:portable", "strict", "torch"])
def test_every_backend_writes_the_same(gpt: GPT, name: str) -> None:
    other = model(name)
    options: dict[str, Any] = {"tokens": 20, "samples": 2, "seed": 5, "sampling": Sampling(temperature=0.8, top_k=8)}
    assert generate(other, TOKENIZER, PROMPTS, **options) == generate(gpt, TOKENIZER, PROMPTS, **options)


def test_a_text_goes_on_as_if_it_had_not_stopped(gpt: GPT) -> None:
    whole = generate(gpt, TOKENIZER, ["ab"], tokens=6)[0].text
    begun = generate(gpt, TOKENIZER, ["ab"], tokens=2)[0].text
    assert begun + generate(gpt, TOKENIZER, ["ab" + begun], tokens=4)[0].text == whole


def test_seeds_and_samples_differ(gpt: GPT) -> None:
    texts = {one.text for seed in range(3) for one in generate(gpt, TOKENIZER, ["a"], tokens=20, samples=3, seed=seed)}
    assert len(texts) == 9


def test_greedy_is_the_largest_logit_of_the_whole_pass(gpt: GPT) -> None:
    ids = [0, 4]
    greedy = Sampling(temperature=0)
    for step in generate_tokens(gpt, [ids[:]], tokens=6, sampling=greedy):
        logits = gpt.backend.to_numpy(gpt(gpt.backend.asarray(np.array([ids]))))
        assert step.tolist() == [int(logits[0, -1].argmax())]
        ids.append(int(step[0]))


def test_beyond_the_context_the_last_half_is_read() -> None:
    scripted = Script([1] * 20, 3, context=8)
    list(generate_tokens(scripted, [[0] * 6], tokens=10, sampling=Sampling(temperature=0), use_cache=False))
    assert scripted.widths == [6, 7, 8, 4, 5, 6, 7, 8, 4, 5]


def test_a_context_of_one_token() -> None:
    tiny = model(context=1)
    assert generate(tiny, TOKENIZER, ["a"], tokens=5) == generate(tiny, TOKENIZER, ["a"], tokens=5, use_cache=False)


def test_ids_without_a_text_are_never_chosen() -> None:
    """A model may have more ids than its tokenizer, for example to make a size even."""
    padded = model(vocabulary=64)
    tokens = generate(padded, TOKENIZER, ["a"], tokens=MANY, samples=4)
    assert max(max(one.tokens) for one in tokens) < TOKENIZER.size


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ConfigError, "a prompt is empty"),
        ([0] * 9, ConfigError, "a prompt has 9 tokens, but the model reads at most 8 at once; shorten it"),
        ([0, 11], ShapeError, "a prompt has ids from 0 to 11, expected 0 to 10"),
        ([-1], ShapeError, "a prompt has ids from -1 to -1"),
        ([0.5], ShapeError, "a prompt is float64 of shape (1,), expected integers"),
        ([[1]], ShapeError, "a prompt is int64 of shape (1, 1)"),
    ],
)
def test_prompts_that_cannot_be_read(gpt: GPT, prompt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        generate_tokens(gpt, [prompt], tokens=1)
    assert message in str(caught.value)


def test_a_prompt_may_fill_the_context(gpt: GPT) -> None:
    assert len(generate(gpt, TOKENIZER, ["abcdefgh"], tokens=3)[0].tokens) == 3


@pytest.mark.parametrize(("name", "value"), [("tokens", -1), ("samples", 0), ("seed", -1), ("tokens", 1.5)])
def test_counts_out_of_range(gpt: GPT, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}, expected a whole number from"):
        generate_tokens(gpt, [[0]], **{"tokens": 1, name: value})


def test_nothing_is_written_when_nothing_is_asked_for(gpt: GPT) -> None:
    assert [one.text for one in generate(gpt, TOKENIZER, ["a", "b"], tokens=0)] == ["", ""]


# Text

GREEDY = Sampling(temperature=0)


def script(text: str) -> tuple[Script, Bytes]:
    return Script(list(text.encode()), 256), Bytes()


def written(text: str, *stops: str) -> list[Any]:
    said, tokenizer = script(text)
    return list(stream(said, tokenizer, ["."], tokens=len(text.encode()), stop=stops, sampling=GREEDY, use_cache=False))


def test_half_a_character_is_never_given() -> None:
    pieces = written("a中é👩!")
    assert [piece.text for piece in pieces] == ["a", "", "", "中", "", "é", "", "", "", "👩", "!"]


def test_a_character_that_is_not_ended_is_marked() -> None:
    said, tokenizer = Script(list("中".encode())[:2], 256), Bytes()
    pieces = stream(said, tokenizer, ["."], tokens=2, sampling=GREEDY, use_cache=False)
    assert [(piece.text, len(piece.tokens)) for piece in pieces] == [("", 1), ("", 1), ("\ufffd", 0)]


@pytest.mark.parametrize(
    ("text", "stops", "before", "stop"),
    [
        ("one two", ["two"], "one ", "two"),
        ("one two", ["xx"], "one two", None),
        ("one tw", ["two"], "one tw", None),
        ("aaab", ["aab"], "a", "aab"),
        ("one two", ["two", "e t"], "on", "e t"),
        ("春。夏", ["。"], "春", "。"),
        ("x\n\ny", ["\n\n"], "x", "\n\n"),
    ],
)
def test_a_stop_text_ends_the_sample(text: str, stops: list[str], before: str, stop: str | None) -> None:
    pieces = written(text, *stops)
    (one,) = collect(pieces, 1, 1)
    assert (one.text, one.stop) == (before, stop)
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert before.startswith(shown)  # nothing is shown and taken back


def test_when_all_samples_have_stopped_the_model_rests() -> None:
    said, tokenizer = script("ab.cd.")
    pieces = list(stream(said, tokenizer, ["x", "y"], tokens=6, stop=["."], sampling=GREEDY, use_cache=False))
    assert len(said.widths) == 3
    assert [(one.text, one.stop) for one in collect(pieces, 2, 1)] == [("ab", "."), ("ab", ".")]


def test_one_sample_may_stop_before_the_others(gpt: GPT) -> None:
    free = generate(gpt, TOKENIZER, PROMPTS, tokens=20)
    stopped = generate(gpt, TOKENIZER, PROMPTS, tokens=20, stop=["c"])
    assert [one.text for one in stopped] == [one.text.split("c")[0] for one in free]
    assert {one.stop for one in stopped} == {"c", None}


def test_prompts_and_stops_that_cannot_be(gpt: GPT) -> None:
    with pytest.raises(ConfigError, match="there is no prompt"):
        stream(gpt, TOKENIZER, [], tokens=1)
    with pytest.raises(ConfigError, match="a stop text is empty"):
        stream(gpt, TOKENIZER, ["a"], tokens=1, stop=[""])
    with pytest.raises(DataError, match=r"'ñ' \(U\+00F1\) at position 1"):
        stream(gpt, TOKENIZER, ["añ"], tokens=1)
    assert generate(gpt, TOKENIZER, ["añ"], tokens=4, unknown="skip") == generate(gpt, TOKENIZER, ["a"], tokens=4)
    with pytest.raises(ConfigError, match="a prompt is empty"):
        stream(gpt, TOKENIZER, ["ñ"], tokens=1, unknown="skip")
