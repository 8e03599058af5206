"""The pairs of ``numpy:fast`` whose products are tiles: shapes that fill none, any layout, what is covered."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason='the extra "fast" brings Numba')

from numba import njit, types
from numba.extending import intrinsic

from xpformer.analysis.measure import relative, right_in_float32
from xpformer.backend import Backend, get_backend
from xpformer.functional import attention, linear, project_to_vocabulary
from xpformer.functional._op import Op, Pair
from xpformer.functional.dropout import keep_mask
from xpformer.rng import MaskKey
from xpformer.training.parallel import Workers
from xpformer_numpy.fast import _jit, _tile, product_loops
from xpformer_numpy.fast import attention as tiles_of_attention
from xpformer_numpy.fast._lanes import LANES, address_of, transposed_code

F = np.float32
KEY = MaskKey(0x9E3779B9, 0x7F4A7C15, first_sample=3)
SHAPES = [(2, 1, 1), (2, 3, 5), (15, 49, 17), (31, 70, 33), (100, 401, 65), (29, 16, 32), (43, 64, 96), (500, 24, 48)]
"""Rows, inputs, outputs: less than a tile, one more than some, and more steps than one pass has."""


@pytest.fixture
def fast() -> Backend:
    return get_backend("numpy:fast")


def draw(*shapes: tuple[int, ...]) -> list[Any]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(F) for shape in shapes]


def results(pair: Pair, arrays: Any, dy: Any, **options: Any) -> list[Any]:
    """y and the gradients that there are."""
    y, saved = pair.forward(*arrays, **options)
    return [y, *(g for g in pair.backward(dy, saved) if g is not None)]


def wrong(op: Op, pair: Pair, arrays: Any, dy: Any, **options: Any) -> list[str]:
    """What is not right in float32, measured by the portable pair in float64."""
    wide = [None if a is None else a.astype(np.float64) for a in (*arrays, dy)]
    right = results(op.portable, wide[:-1], wide[-1], **options)
    rough, found = (results(p, arrays, dy, **options) for p in (op.portable, pair))
    rows = [
        right_in_float32(f"result {i}", [relative(a, exact)], [relative(b, exact)])
        for i, (a, b, exact) in enumerate(zip(found, rough, right, strict=True))
    ]
    return [str(row) for row in rows if not row.ok]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_of_any_shape(fast: Backend, shape: tuple[int, int, int], bias: bool) -> None:
    rows, inputs, outputs = shape
    x, weight, b, dy = draw((rows, inputs), (inputs, outputs), (outputs,), (rows, outputs))
    arrays = (x, weight, b if bias else None)
    pair = fast.pair(linear, arrays, {})
    assert pair.name == "tiles"
    assert wrong(linear, pair, arrays, dy) == []


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_vocabularies_of_any_size(fast: Backend, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    x, weight, dy = draw((rows, inputs), (outputs, inputs), (rows, outputs))
    pair = fast.pair(project_to_vocabulary, (x, weight), {})
    assert pair.name == "tiles"
    assert wrong(project_to_vocabulary, pair, (x, weight), dy) == []


def test_memory_of_any_layout(fast: Backend) -> None:
    x, weight, b, dy = draw((6, 40, 10), (21, 10), (42,), (6, 30, 21))
    arrays = (x[:, 5:35], weight.T, b[::2])
    assert not arrays[0].flags.c_contiguous
    assert wrong(linear, fast.pair(linear, arrays, {}), arrays, dy.transpose(2, 1, 0).copy().transpose(2, 1, 0)) == []


def test_gradients_go_into_their_slots_whatever_these_are(fast: Backend) -> None:
    x, weight, b, dy = draw((9, 10), (10, 21), (21,), (9, 21))
    pair = fast.pair(linear, (x, weight, b), {})
    _, saved = pair.forward(x, weight, b)
    dx, dweight, dbias = pair.backward(dy, saved)
    for slots in (
        {"weight": np.full((10, 21), np.nan, F), "bias": np.full(21, np.nan, F)},
        {"weight": np.full((21, 10), np.nan, F).T, "bias": np.full(42, np.nan, F)[::2]},
    ):
        found = pair.backward(dy, saved, into=slots)
        assert found[1] is slots["weight"]
        assert found[2] is slots["bias"]
        assert all(np.array_equal(a, c) for a, c in zip(found, (dx, dweight, dbias), strict=True))
    assert pair.backward(dy, saved, need={"bias"})[:2] == (None, None)
    assert [g is None for g in pair.backward(dy, saved, need=set())] == [True] * 3


def test_a_row_does_not_depend_on_its_neighbours(fast: Backend) -> None:
    x, weight, b = draw((47, 400), (400, 33), (33,))
    pair = fast.pair(linear, (x, weight, b), {})
    whole, part = pair.forward(x, weight, b)[0], pair.forward(x[3:9], weight, b)[0]
    assert np.array_equal(whole[3:9], part)


def test_numbers_that_are_not_finite_stay_where_they_are(fast: Backend) -> None:
    x, weight, b, dy = draw((9, 10), (10, 21), (21,), (9, 21))
    x[4, 2] = np.inf
    y, saved = fast.pair(linear, (x, weight, b), {}).forward(x, weight, b)
    assert np.isinf(y[4]).all()
    assert np.isfinite(np.delete(y, 4, axis=0)).all()
    dy[3] = np.nan
    dx, *parameters = fast.pair(linear, (x, weight, b), {}).backward(dy, saved)
    assert np.isnan(dx[3]).all()
    assert np.isfinite(np.delete(dx, 3, axis=0)).all()
    assert all(np.isnan(g).all() for g in parameters)


def test_what_blas_does(fast: Backend) -> None:
    x, weight = draw((4, 600), (600, 500))
    assert weight.size > product_loops.LARGEST
    assert fast.pair(linear, (x, weight, None), {}).name == "blas"
    assert fast.pair(linear, (x[:1, :5], weight[:5, :5], None), {}).name == "blas"
    assert fast.pair(linear, (x[:, :5].astype(np.float64), weight[:5, :5].astype(np.float64), None), {}).name == "blas"
    with Workers(fast, 2, "operations") as workers, workers.step():
        assert fast.pair(linear, (x[:, :5], weight[:5, :5], None), {}).name == "blas"
    assert fast.pair(linear, (x[:, :5], weight[:5, :5], None), {}).name == "tiles"


def compiled(rows: int, lanes: int, *, by_columns: bool) -> Any:
    """Tiles for a processor with other registers, of one and of two."""
    one, two = (_tile.make_tile(rows, vectors, lanes, by_columns=by_columns) for vectors in (1, 2))

    @njit(error_model="numpy")
    def run(number: Any, a: Any, a_step: Any, b: Any, c: Any, e: Any, depth: Any, width: Any) -> None:
        a_at, b_at, c_at, e_at = address_of(a, 0), address_of(b, 0), address_of(c, 0), address_of(e, 0)
        if width > lanes:
            two(number, a_at, a_step, b_at, b.shape[1], c_at, c.shape[1], e_at, 0, depth, width)
        else:
            one(number, a_at, a_step, b_at, b.shape[1], c_at, c.shape[1], e_at, 0, depth, width)

    return run


@pytest.mark.parametrize("by_columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(("rows", "lanes"), [(6, 8), (3, 4), (_tile.ROWS, LANES)])
def test_tiles_of_every_size_and_nothing_beside_them(rows: int, lanes: int, by_columns: bool) -> None:
    run = compiled(rows, lanes, by_columns=by_columns)
    for number in range(1, rows + 1):
        for width in (1, lanes - 1, lanes, lanes + 1, 2 * lanes):
            for depth in (0, 1, 7, 8):
                a, b, e = draw((number, depth), (depth, width + 3), (width,))
                given = np.ascontiguousarray(a.T) if by_columns else a
                c = np.full((number + 1, width + 2), 7.0, F)
                run(number, given, given.shape[1], b, c, e, depth, width)
                assert np.allclose(c[:number, :width], a @ b[:, :width] + e, atol=1e-5)
                assert (c[number:] == 7.0).all()
                assert (c[:, width:] == 7.0).all()


@pytest.mark.parametrize("lanes", [4, 8, LANES])
def test_blocks_of_every_size_are_transposed_and_nothing_beside_them(lanes: int) -> None:
    def transpose(_context: Any, x: Any, x_step: Any, y: Any, y_step: Any, rows: Any, columns: Any) -> Any:
        return types.none(*[types.int64] * 6), transposed_code(lanes)

    move = intrinsic(transpose)

    @njit
    def run(x: Any, y: Any, rows: int, columns: int) -> None:
        move(address_of(x, 0), x.shape[1], address_of(y, 0), y.shape[1], rows, columns)

    for rows in range(lanes + 1):
        for columns in range(1, lanes + 1):
            (x,) = draw((lanes, columns + 1))
            x[rows:] = np.nan  # never read: what is not there is 0
            y = np.full((lanes + 1, lanes + 3), 7.0, F)
            run(x, y, rows, columns)
            assert np.array_equal(y[:columns, :rows], x[:rows, :columns].T)
            assert (y[:columns, rows:lanes] == 0.0).all()
            assert (y[columns:] == 7.0).all()
            assert (y[:, lanes:] == 7.0).all()


ATTENTION: list[tuple[Any, ...]] = [
    # query, key, width of the values, causal, mask
    ((1, 1, 1, 1), 1, 1, False, None),
    ((2, 5, 2, 3), 7, 4, False, None),
    ((1, 17, 2, 20), 17, 33, False, None),
    ((2, 33, 1, 33), 33, 5, True, None),
    ((2, 50, 3, 40), 50, 40, True, None),
    ((1, 5, 2, 8), 40, 8, True, None),
    ((1, 130, 2, 64), 130, 16, True, None),
    ((2, 31, 2, 24), 31, 24, False, (2, 31, 31)),
    ((2, 3, 5, 2, 8), 9, 6, False, (3, 1, 5, 9)),
]


@pytest.fixture(params=[1, 16, None], ids=lambda n: f"{n or 'all'} at once")
def queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many queries are computed at once."""
    if request.param is not None:
        monkeypatch.setattr(tiles_of_attention, "_ROOM", 0)
        monkeypatch.setattr(tiles_of_attention, "_LEAST", request.param)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("query", "keys", "width", "causal", "mask"), ATTENTION, ids=str)
def test_attention_of_any_shape(
    fast: Backend, queries: None, query: Any, keys: int, width: int, causal: bool, mask: Any, dropout: float
) -> None:
    key, value = (*query[:-3], keys, *query[-2:]), (*query[:-3], keys, query[-2], width)
    q, k, v, dy = draw(query, key, value, (*query[:-1], width))
    options: dict[str, Any] = {"causal": causal}
    if dropout:
        options |= {"dropout": dropout, "dropout_key": KEY}
    arrays = (q, k, v, None if mask is None else draw(mask)[0])
    pair = fast.pair(attention, arrays, options)
    assert pair.name == "tiles"
    assert wrong(attention, pair, arrays, dy, **options) == []


@pytest.mark.parametrize("scale", [0.0, -0.7])
def test_scores_may_be_scaled_by_any_number(fast: Backend, scale: float) -> None:
    q, k, v, dy = draw(*[(2, 20, 2, 8)] * 4)
    pair = fast.pair(attention, (q, k, v), {"causal": True, "scale": scale})
    assert pair.name == "tiles"
    assert wrong(attention, pair, (q, k, v, None), dy, causal=True, scale=scale) == []


def test_heads_may_lie_anywhere(fast: Backend) -> None:
    packed, dy = draw((2, 3, 9, 8, 10), (2, 3, 8, 9))
    arrays = [packed[:, i].swapaxes(-1, -3)[..., 1:, :] for i in range(3)]  # (2, 10, 7, 9), no step of which is 1
    pair = fast.pair(attention, (*arrays, None), {})
    assert wrong(attention, pair, (*arrays, None), np.resize(dy, arrays[0].shape)) == []


@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_dropped_by_the_bits_of_every_backend(fast: Backend, queries: None, causal: bool) -> None:
    q, k = draw((5, 4, 2, 6), (5, 4, 2, 6))
    v = np.broadcast_to(np.eye(4, dtype=F)[:, None], (5, 4, 2, 4))
    options = {"causal": causal, "dropout": 0.4, "dropout_key": KEY}
    pair = fast.pair(attention, (q, k, v), options)
    weights = np.swapaxes(pair.forward(q, k, v, **options)[0], 1, 2)
    seen = np.tri(4, dtype=bool) if causal else np.ones((4, 4), dtype=bool)
    kept = keep_mask(np.zeros((5, 2, 4, 4), F), rate=0.4, key=KEY)
    assert np.array_equal(weights != 0.0, kept & seen)


def test_the_weights_are_not_kept(fast: Backend) -> None:
    q, k, v = draw(*[(2, 40, 3, 4)] * 3)
    _, saved = fast.pair(attention, (q, k, v), {}).forward(q, k, v)
    assert {id(x) for x in saved if isinstance(x, np.ndarray)} == {id(q), id(k), id(v)}


def test_rows_that_do_not_begin_at_a_number(fast: Backend) -> None:
    records = np.zeros((2, 9, 2), [("x", F, (8,)), ("flag", "u1")])  # rows 33 bytes apart
    records["x"], (dy,) = draw((2, 9, 2, 8))[0], draw((2, 9, 2, 8))
    arrays = (records["x"],) * 3
    assert wrong(attention, fast.pair(attention, arrays, {}), (*arrays, None), dy) == []


@pytest.mark.parametrize("over", ["keys", "queries"])
def test_a_long_sum_is_no_single_chain_of_additions(fast: Backend, over: str) -> None:
    """All weights are equal; then y is the mean of the values, and each gradient of a value a sum over the queries."""
    many = np.random.default_rng(0).random((1, 20_000, 1, 16), F)
    few, zeros = (np.zeros((1, 3, 1, width), F) for width in (16, 2))
    q, k, v, dy = (zeros, many[..., :2] * 0, many, few) if over == "keys" else (many[..., :2] * 0, zeros, few, many)
    pair = fast.pair(attention, (q, k, v), {})
    assert pair.name == "tiles"
    y, saved = pair.forward(q, k, v)
    found = y if over == "keys" else pair.backward(dy, saved)[2]
    terms = many / F(k.shape[1])
    exact, chain = terms.sum(axis=1, dtype=np.float64), np.add.accumulate(terms, axis=1)[:, -1]
    assert relative(found[:, 0], exact) < relative(chain, exact) / 4


@pytest.mark.parametrize("causal", [False, True])
def test_the_memory_of_a_long_text_is_no_square(fast: Backend, causal: bool) -> None:
    length = 4096
    q, k, v, dy = draw(*[(1, length, 1, 16)] * 4)
    pair = fast.pair(attention, (q, k, v), {"causal": causal})
    assert pair.name == "tiles"
    pair.backward(dy[:, :2], pair.forward(q[:, :2], k[:, :2], v[:, :2])[1])  # compiled
    tracemalloc.start()
    _, saved = pair.forward(q, k, v, causal=causal)
    pair.backward(dy, saved)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * length**2 / 10


def test_a_query_that_is_not_finite_reaches_no_value_that_it_cannot_see(fast: Backend, queries: None) -> None:
    """And of the keys at most those that share a tile with one that it sees."""
    q, k, v, dy = draw(*[(1, 40, 1, 8)] * 4)
    q[0, 20] = np.nan
    y, saved = fast.pair(attention, (q, k, v), {"causal": True}).forward(q, k, v, causal=True)
    assert np.isfinite(np.delete(y, 20, axis=1)).all()
    _, dk, dv, _ = fast.pair(attention, (q, k, v), {"causal": True}).backward(dy, saved)
    assert np.isfinite(dk[0, 21 + _tile.ROWS :]).all()
    assert np.isnan(dv[0, :21]).all()
    assert np.isfinite(dv[0, 21:]).all()


def test_what_is_kept_on_disk_belongs_to_these_sources() -> None:
    """Numba looks at the file of a function alone, and what it calls stands in others."""

    @_jit.inlined
    def twice(x: Any) -> Any:
        return 2 * x

    assert twice(F(1.5)) == 3.0
    signature = twice.signatures[0]
    key = twice._cache._index_key(signature, twice.targetctx.codegen())
    assert key[-1] == _jit.SOURCES
    assert key[0] == signature
