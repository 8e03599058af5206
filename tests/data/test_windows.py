from __future__ import annotations

import numpy as np
import pytest

from xpformer.data import BytePairs, Bytes, Characters, Tokenizer, sentence_starts, window_starts, windows
from xpformer.errors import DataError


def test_a_window_and_its_targets() -> None:
    tokens = np.arange(10, 20, dtype=np.uint16)
    x, y = windows(tokens, np.array([0, 6]), 3)
    assert x.tolist() == [[10, 11, 12], [16, 17, 18]]
    assert y.tolist() == [[11, 12, 13], [17, 18, 19]]
    assert (x.dtype, y.dtype) == (np.int64, np.int64)
    x[:] = 0
    assert tokens[0] == 10


def test_starts_are_a_function_of_seed_and_step() -> None:
    draw = lambda step, seed: window_starts(step, 64, 1000, 8, seed).tolist()  # noqa: E731
    assert draw(3, 0) == draw(3, 0)
    assert draw(3, 0) != draw(4, 0)
    assert draw(3, 0) != draw(3, 1)


def test_every_place_that_has_a_window_is_drawn_and_no_other() -> None:
    drawn = np.concatenate([window_starts(step, 100, 12, 8, 0) for step in range(5)])
    assert np.unique(drawn).tolist() == [0, 1, 2, 3]
    assert window_starts(0, 3, 9, 8, 0).tolist() == [0, 0, 0]


def test_starts_of_sentences_that_have_a_window() -> None:
    drawn = np.concatenate([window_starts(step, 50, 12, 8, 0, np.array([0, 2, 3, 4, 9])) for step in range(5)])
    assert np.unique(drawn).tolist() == [0, 2, 3]
    with pytest.raises(DataError, match="no sentence begins 9 tokens before its end"):
        window_starts(0, 1, 12, 8, 0, np.array([5, 9]))


def test_a_text_without_a_window() -> None:
    with pytest.raises(DataError, match="has 8 tokens, a window needs 9"):
        window_starts(0, 1, 8, 8, 0)


SENTENCES = {
    'One. Two! "Three?" (Four.) Five 3.14 Mr.X\nsix': ["One.", "Two!", '"Three?"', "(Four.)", "Five 3.14 Mr.X\nsix"],
    "关关也爱春。欲语如调舌，初飞似畏人！\n“谁？”无人……\n一": [
        "关关也爱春。",
        "欲语如调舌，初飞似畏人！",
        "“谁？”",
        "无人……",
        "一",
    ],
    "A heading\n\nA line\nand one\n \n\nEnd.": ["A heading", "A line\nand one", "End."],
    "no end": ["no end"],
}


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("kind", [Characters.of, lambda _: Bytes()])
def test_sentences(text: str, kind: type[Tokenizer]) -> None:
    tokenizer = kind(text)  # type: ignore[arg-type]
    tokens = tokenizer.encode(text)
    starts = sentence_starts(tokens, tokenizer)
    parts = [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    assert [tokenizer.decode(part).strip() for part in parts] == SENTENCES[text]


def test_a_sentence_begins_in_the_token_that_holds_its_first_character() -> None:
    text = "the end. the cat. " * 30
    tokenizer = BytePairs.train(text, 300)
    tokens = tokenizer.encode(text)
    starts = sentence_starts(tokens, tokenizer)
    assert len(starts) == 60
    assert all(tokenizer.decode(tokens[start:]).strip().startswith("the ") for start in starts)
