"""JSON as RFC 8259 has it, and no more: what we write every parser reads, and nothing ambiguous is read.

Python's ``json`` writes and reads ``NaN``, reads ``1e999`` as infinity and lets the last of two equal keys win; here
each of these is a ``ValueError`` of one line.
"""

from __future__ import annotations

import json
import math


def _constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return result


def dumps(value: object) -> bytes:
    """Indented ASCII JSON that ends in a newline; ``ValueError`` for what JSON cannot hold (NaN, arrays, sets)."""
    try:
        return json.dumps(value, allow_nan=False, indent=2).encode("ascii") + b"\n"
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def dumps_line(value: object) -> bytes:
    """The same on one line, for ``.jsonl`` files."""
    return json.dumps(value, allow_nan=False).encode("ascii") + b"\n"


def loads(data: bytes) -> object:
    """The value of UTF-8 JSON ``data``; ``ValueError`` with a one-line reason for anything else."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_constant, parse_float=_float, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
