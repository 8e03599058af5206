"""The harness is tested: each of these mistakes is caught by the checks that every pair passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xpformer.analysis.case import Case, case
from xpformer.analysis.cases import CASES
from xpformer.analysis.compare import compare_operation
from xpformer.analysis.gradient_check import check_operation, failures
from xpformer.array import namespace, size
from xpformer.backend import Backend
from xpformer.functional import OPERATIONS
from xpformer.functional._op import Pair
from xpformer.functional.patch_merging import merged_grid
from xpformer.functional.random_bits import keep_mask
from xpformer.functional.window_partition import Windows
from xpformer.rng import MaskKey


def checked(op: str, pair: Pair, cases: tuple[Case, ...], backend: Backend) -> list[str]:
    """What the harness says of a pair."""
    return [text for c in cases for text in failures(check_operation(OPERATIONS[op], pair, c, backend))]


Backward = Callable[..., tuple[Any, ...]]
MISTAKES: dict[str, tuple[str, Backward]] = {}


def mistake(op: str) -> Callable[[Backward], Backward]:
    """Register a wrong backward of an operation."""

    def register(backward: Backward) -> Backward:
        MISTAKES[backward.__name__] = (op, backward)
        return backward

    return register


def right(op: str, dy: Any, saved: Any, need: Any) -> list[Any]:
    return list(OPERATIONS[op].backward(dy, saved, need=need))


def only(need: Any, op: str, *gradients: Any) -> tuple[Any, ...]:
    """``gradients`` where they are needed."""
    return tuple(
        g if need is None or n in need else None for n, g in zip(OPERATIONS[op].arguments, gradients, strict=True)
    )


# ---- layer norm ----


def layer_norm_dx(dy: Any, saved: Any, *, weight: bool = True, term2: bool = True, term3: bool = True) -> Any:
    xp, n = namespace(dy), saved.normalized
    dn = dy * saved.weight if weight else dy
    dx = dn
    if term2:
        dx = dx - xp.mean(dn, axis=-1, keepdims=True)
    if term3:
        dx = dx - n * xp.mean(dn * n, axis=-1, keepdims=True)
    return dx * saved.inv_std


@mistake("layer_norm")
def dropped_term_2(dy: Any, saved: Any, *, need: Any = None) -> Any:
    _, dweight, dbias = right("layer_norm", dy, saved, need)
    return *only(need, "layer_norm", layer_norm_dx(dy, saved, term2=False), None, None)[:1], dweight, dbias


@mistake("layer_norm")
def dropped_term_3(dy: Any, saved: Any, *, need: Any = None) -> Any:
    _, dweight, dbias = right("layer_norm", dy, saved, need)
    return *only(need, "layer_norm", layer_norm_dx(dy, saved, term3=False), None, None)[:1], dweight, dbias


@mistake("layer_norm")
def forgotten_gamma(dy: Any, saved: Any, *, need: Any = None) -> Any:
    _, dweight, dbias = right("layer_norm", dy, saved, need)
    return *only(need, "layer_norm", layer_norm_dx(dy, saved, weight=False), None, None)[:1], dweight, dbias


# ---- attention, in its plain form ----


def attention_gradients(dy: Any, saved: Any, *, mistake: str = "") -> tuple[Any, Any, Any, None]:
    """The derivation's equations with one of them wrong."""
    q, k, v, d = (np.swapaxes(np.asarray(a), -3, -2) for a in (saved.query, saved.key, saved.value, dy))
    p = np.asarray(saved.probabilities)
    dv = (p if mistake == "P instead of its transpose" else np.swapaxes(p, -1, -2)) @ d
    dp = d @ np.swapaxes(v, -1, -2)
    dz = p * (dp - np.sum(dp * p, -1, keepdims=True))
    if mistake == "no row sum":
        dz = p * dp
    dq = dz @ k * (1.0 if mistake == "missing scale" else saved.scale)
    dk = (dz if mistake == "transposed dK" else np.swapaxes(dz, -1, -2)) @ q * saved.scale
    return *(np.swapaxes(g, -3, -2) for g in (dq, dk, dv)), None


def attention_mistake(name: str) -> Backward:
    def backward(dy: Any, saved: Any, *, need: Any = None) -> Any:
        return only(need, "attention", *attention_gradients(dy, saved, mistake=name))

    return backward


ATTENTION_MISTAKES = ("transposed dK", "missing scale", "P instead of its transpose", "no row sum")
SELF = (case("five tokens", (3, 5, 4, 6), (3, 5, 4, 6), (3, 5, 4, 8)),)
ONE_TOKEN = (case("one token", (3, 1, 4, 6), (3, 1, 4, 6), (3, 1, 4, 8)),)


@pytest.mark.parametrize("name", ATTENTION_MISTAKES)
def test_a_mistake_in_attention_is_caught(portable: Backend, name: str) -> None:
    attention = OPERATIONS["attention"]
    assert checked("attention", Pair(attention.forward, attention_mistake("")), SELF, portable) == []
    found = checked("attention", Pair(attention.forward, attention_mistake(name)), SELF, portable)
    assert any("finite difference" in text for text in found)


def test_with_one_token_three_of_four_mistakes_in_attention_would_pass(portable: Backend) -> None:
    forward = OPERATIONS["attention"].forward
    passed = [
        name
        for name in ATTENTION_MISTAKES
        if not checked("attention", Pair(forward, attention_mistake(name)), ONE_TOKEN, portable)
    ]
    assert passed == ["transposed dK", "missing scale", "P instead of its transpose"]


# ---- the others ----


@mistake("softmax")
def softmax_without_the_row_sum(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return only(need, "softmax", dy * saved.probabilities)


@mistake("linear")
def bias_averaged_instead_of_summed(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dx, dweight, dbias = right("linear", dy, saved, need)
    rows = max(1, dy.size // dy.shape[-1])
    return dx, dweight, None if dbias is None else dbias / rows


@mistake("embedding")
def scatter_that_loses_duplicates(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dweight = np.zeros((saved.rows, dy.shape[-1]))
    dweight[np.asarray(saved.ids)] = np.asarray(dy)  # the last one wins
    return only(need, "embedding", dweight, None)


@mistake("cross_entropy")
def missing_one_over_n(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dlogits, dtargets = right("cross_entropy", dy, saved, need)
    return None if dlogits is None else dlogits * saved.denominator, dtargets


@mistake("cross_entropy")
def label_smoothing_forgotten(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("cross_entropy", dy, saved._replace(label_smoothing=0.0), need)


@mistake("cross_entropy")
def ignored_rows_counted(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("cross_entropy", dy, saved._replace(keep=None), need)


@mistake("gelu")
def wrong_constant_in_the_tanh_form(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return only(need, "gelu", dy * saved.slope)


def gelu_forward(x: Any, *, approximate: str = "none") -> Any:
    """What is kept has c instead of 3 c."""
    y, saved = OPERATIONS["gelu"].forward(x, approximate=approximate)
    if approximate == "none":
        return y, saved
    root, c = np.sqrt(2.0 / np.pi), 0.044715
    t = np.tanh(root * (x + c * x**3))
    return y, saved._replace(slope=0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + c * x**2))


@mistake("bias_gelu")
def bias_summed_before_the_slope(dy: Any, saved: Any, *, need: Any = None) -> Any:
    summed = namespace(dy).sum(dy, axis=tuple(range(dy.ndim - 1)))
    return only(need, "bias_gelu", dy * saved.slope, summed)


@mistake("conv2d")
def stride_ignored_in_dx(dy: Any, saved: Any, *, need: Any = None) -> Any:
    spread = tuple(a._replace(stride=1, after=a.kernel + a.places - 1 - a.length - a.before) for a in saved.axes)
    if any(a.before >= a.kernel + a.places - 1 for a in spread):  # with a stride of 1 the border would be all
        return right("conv2d", dy, saved, need)
    dx = right("conv2d", dy, saved._replace(axes=spread), ("x",))[0]
    _, dweight, dbias = right("conv2d", dy, saved, need)
    return *only(need, "conv2d", dx, None, None)[:1], dweight, dbias


@mistake("patchify")
def patches_put_back_transposed(dy: Any, saved: Any, *, need: Any = None) -> Any:
    (p, q), (*_, channels, height, width) = saved.patch, saved.shape
    cut = np.reshape(dy, (-1, width // q, height // p, channels, p, q))  # the grid's columns before its rows
    return only(need, "patchify", np.reshape(np.transpose(cut, (0, 3, 2, 4, 1, 5)), saved.shape))


@mistake("dropout")
def mask_drawn_again_in_backward(dy: Any, saved: Any, *, need: Any = None) -> Any:
    if saved.keep is None:
        return only(need, "dropout", dy)
    keep = keep_mask(dy, rate=1.0 - 1.0 / saved.scale, key=MaskKey(5, 6))
    return only(need, "dropout", np.where(keep, dy * saved.scale, 0.0))


@mistake("drop_path")
def drop_path_not_scaled(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("drop_path", dy, saved._replace(scale=1.0), need)


@mistake("mean_tokens")
def mean_without_one_over_t(dy: Any, saved: Any, *, need: Any = None) -> Any:
    (dx,) = right("mean_tokens", dy, saved, need)
    return (None if dx is None else dx * saved.length,)


@mistake("prepend_token")
def token_gets_one_sample_only(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dx, dtoken = right("prepend_token", dy, saved, need)
    return dx, None if dtoken is None else dtoken / 2


@mistake("add_broadcast")
def table_averaged_over_the_batch(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dx, dtable = right("add_broadcast", dy, saved, need)
    return dx, None if dtable is None else dtable * (dtable.size / max(1, dy.size))


@mistake("split_heads")
def parts_packed_in_the_wrong_order(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("split_heads", dy[::-1], saved, need)


@mistake("bce_with_logits")
def sigmoid_forgotten(dy: Any, saved: Any, *, need: Any = None) -> Any:
    scale = dy / saved.denominator
    return only(need, "bce_with_logits", (saved.logits - saved.targets) * scale, -saved.logits * scale)


@mistake("mse")
def factor_two_forgotten(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return tuple(None if g is None else g / 2 for g in right("mse", dy, saved, need))


@mistake("relu")
def slope_of_the_output_instead_of_its_sign(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return only(need, "relu", dy)


@mistake("rms_norm")
def mean_removed_as_in_layer_norm(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dx, dweight = right("rms_norm", dy, saved, need)
    dn = dy * saved.weight
    return None if dx is None else dx - np.mean(dn, axis=-1, keepdims=True) * saved.inv_rms, dweight


@mistake("rms_norm")
def root_mean_square_taken_for_a_constant(dy: Any, saved: Any, *, need: Any = None) -> Any:
    _, dweight = right("rms_norm", dy, saved, need)
    return only(need, "rms_norm", dy * saved.weight * saved.inv_rms, None)[0], dweight


@mistake("rotary")
def turned_on_instead_of_back(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("rotary", dy, saved._replace(sine=-saved.sine), need)


@mistake("swiglu")
def gate_without_its_slope(dy: Any, saved: Any, *, need: Any = None) -> Any:
    half = saved.x.shape[-1] // 2
    gate, value = saved.x[..., :half], saved.x[..., half:]
    return only(need, "swiglu", np.concatenate([dy * value * saved.logistic, dy * gate * saved.logistic], -1))


@mistake("swiglu")
def gate_and_value_swapped(dy: Any, saved: Any, *, need: Any = None) -> Any:
    half = saved.x.shape[-1] // 2
    return tuple(None if g is None else np.roll(g, half, -1) for g in right("swiglu", dy, saved, need))


@mistake("project_to_vocabulary")
def table_averaged_over_the_tokens(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dx, dweight = right("project_to_vocabulary", dy, saved, need)
    return dx, None if dweight is None else dweight / max(2, dy.size // dy.shape[-1])


# ---- tokens gathered ----


@mistake("pad")
def cropped_from_the_wrong_end(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return only(need, "pad", dy[tuple(slice(m - n, m) for m, n in zip(dy.shape, saved.shape, strict=True))])


@mistake("roll")
def rolled_on_instead_of_back(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("roll", dy, saved._replace(shift=tuple(-s for s in saved.shift)), need)


@mistake("roll")
def first_axis_rolled_alone(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("roll", dy, saved._replace(shift=saved.shift[:1], axis=saved.axis[:1]), need)


@mistake("patch_merging")
def neighbours_row_by_row(dy: Any, saved: Any, *, need: Any = None) -> Any:
    parts = np.reshape(dy, (*dy.shape[:-1], 2, 2, dy.shape[-1] // 4))
    return right("patch_merging", np.reshape(np.swapaxes(parts, -3, -2), dy.shape), saved, need)


@mistake("patch_merging")
def padding_in_front(dy: Any, saved: Any, *, need: Any = None) -> Any:
    rows, columns = merged_grid(saved.grid)
    (dx,) = right("patch_merging", dy, saved._replace(grid=(2 * rows, 2 * columns)), need)
    if dx is None:
        return (None,)
    dx = np.reshape(dx, (*dy.shape[:-2], 2 * rows, 2 * columns, dy.shape[-1] // 4))
    dx = dx[..., 2 * rows - saved.grid[0] :, 2 * columns - saved.grid[1] :, :]
    return (np.reshape(dx, (*dx.shape[:-3], size(saved.grid), dx.shape[-1])),)


def turned(dx: Any, windows: Windows, shift: tuple[int, int]) -> Any:
    """The grid of tokens ``dx`` rolled."""
    grid = np.reshape(dx, (-1, *windows.grid, dx.shape[-1]))
    return np.reshape(np.roll(grid, shift, (1, 2)), dx.shape)


@mistake("window_partition")
def shift_forgotten(dy: Any, saved: Any, *, need: Any = None) -> Any:
    return right("window_partition", dy, saved._replace(windows=saved.windows._replace(shift=(0, 0))), need)


@mistake("window_partition")
def shift_of_the_cropped_grid(dy: Any, saved: Any, *, need: Any = None) -> Any:
    """Cropped before it is turned back."""
    (dx,) = right("window_partition", dy, saved._replace(windows=saved.windows._replace(shift=(0, 0))), need)
    return (None if dx is None else turned(dx, saved.windows, saved.windows.shift),)


@mistake("window_partition")
def windows_put_back_by_columns(dy: Any, saved: Any, *, need: Any = None) -> Any:
    rows, columns = saved.windows.counts
    grid = np.reshape(dy, (*dy.shape[:-3], columns, rows, *dy.shape[-2:]))
    return right("window_partition", np.reshape(np.swapaxes(grid, -4, -3), dy.shape), saved, need)


@mistake("window_reverse")
def shift_of_the_wrong_sign(dy: Any, saved: Any, *, need: Any = None) -> Any:
    w = saved.windows
    back = tuple((n - s) % n for s, n in zip(w.shift, w.window, strict=True))
    return right("window_reverse", dy, saved._replace(windows=w._replace(shift=back)), need)


@mistake("window_reverse")
def tokens_of_a_window_by_columns(dy: Any, saved: Any, *, need: Any = None) -> Any:
    (dx,) = right("window_reverse", dy, saved, need)
    if dx is None:
        return (None,)
    down, across = saved.windows.window
    tokens = np.reshape(dx, (*dx.shape[:-2], down, across, dx.shape[-1]))
    return (np.reshape(np.swapaxes(tokens, -3, -2), dx.shape),)


@mistake("relative_position_bias")
def one_window_alone(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dtable, dmask = right("relative_position_bias", dy, saved, need)
    if saved.has_mask and dy.shape[0]:
        first = right("relative_position_bias", dy[:1], saved, ("table",))[0]
        dtable = None if dtable is None else first
    return dtable, dmask


@mistake("relative_position_bias")
def key_before_query(dy: Any, saved: Any, *, need: Any = None) -> Any:
    _, dmask = right("relative_position_bias", dy, saved, need)
    return right("relative_position_bias", np.swapaxes(dy, -2, -1), saved, need)[0], dmask


@mistake("relative_position_bias")
def rows_taken_for_columns(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dtable, dmask = right("relative_position_bias", dy, saved, need)
    if dtable is None:
        return dtable, dmask
    down, across = (2 * n - 1 for n in saved.window)
    return np.reshape(np.swapaxes(np.reshape(dtable, (down, across, -1)), 0, 1), dtable.shape), dmask


@mistake("relative_position_bias")
def mask_of_the_first_head(dy: Any, saved: Any, *, need: Any = None) -> Any:
    dtable, dmask = right("relative_position_bias", dy, saved, need)
    return dtable, None if dmask is None else dy[:, 0]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_caught(portable: Backend, name: str) -> None:
    op, backward = MISTAKES[name]
    forward = gelu_forward if op == "gelu" else OPERATIONS[op].forward
    found = checked(op, Pair(forward, backward), CASES[op], portable)
    assert any("finite difference" in text for text in found), found
    assert not any("shape kept" in text for text in found)  # a mistake that NumPy itself would report is none


def test_without_a_random_weight_a_forgotten_gamma_would_pass(portable: Backend) -> None:
    pair = Pair(OPERATIONS["layer_norm"].forward, forgotten_gamma)
    initial = (case("weights at their initial values", (4, 3, 7), np.ones(7), np.zeros(7)),)
    assert checked("layer_norm", pair, initial, portable) == []


# ---- the rules that need no finite difference ----


def rule_broken(op: str, backward: Backward, rule: str, backend: Backend) -> bool:
    found = checked(op, Pair(OPERATIONS[op].forward, backward), CASES[op], backend)
    return any(rule in text for text in found)


def test_a_gradient_that_nobody_asked_for_is_caught(portable: Backend) -> None:
    def all_of_them(dy: Any, saved: Any, *, need: Any = None) -> Any:
        return tuple(right("linear", dy, saved, None))

    assert rule_broken("linear", all_of_them, "need nothing", portable)


def test_a_state_between_calls_is_caught(portable: Backend) -> None:
    calls = iter(range(1000))

    def counting(dy: Any, saved: Any, *, need: Any = None) -> Any:
        return tuple(None if g is None else g * (1.0 + 1e-15 * next(calls)) for g in right("tanh", dy, saved, need))

    assert rule_broken("tanh", counting, "twice the same bits", portable)


def test_another_dtype_is_caught(portable: Backend) -> None:
    def narrow(dy: Any, saved: Any, *, need: Any = None) -> Any:
        return tuple(None if g is None else g.astype("float32") for g in right("tanh", dy, saved, need))

    assert rule_broken("tanh", narrow, "dtype kept", portable)


def test_a_backward_that_is_not_linear_is_caught(portable: Backend) -> None:
    def clipped(dy: Any, saved: Any, *, need: Any = None) -> Any:
        return tuple(None if g is None else np.clip(g, -1.0, 1.0) for g in right("flatten", dy, saved, need))

    assert rule_broken("flatten", clipped, "linear in dy", portable)


@pytest.mark.parametrize("written", ["dy", "saved"])
def test_writing_an_argument_fails(portable: Backend, written: str) -> None:
    def writes(dy: Any, saved: Any, *, need: Any = None) -> Any:
        target = dy if written == "dy" else saved.y
        target *= 2.0
        return (target,)

    with pytest.raises(ValueError, match="read-only"):
        rule_broken("tanh", writes, "", portable)


# ---- against NumPy portable ----


def compared(op: str, pair: Pair, backend: Backend) -> str:
    found = [compare_operation(OPERATIONS[op], pair, c, backend) for c in CASES[op]]
    return "\n".join(text for rows in found for text in failures(rows))


def test_a_short_polynomial_for_erf_is_caught_in_float64(portable: Backend) -> None:
    """Abramowitz and Stegun 7.1.26, off by 1.5e-7, is for float32 only; the gradient check would let it pass."""

    def forward(x: Any, *, approximate: str = "none") -> Any:
        y, saved = OPERATIONS["gelu"].forward(x, approximate=approximate)
        if approximate == "tanh":
            return y, saved
        z = np.abs(x) * np.sqrt(0.5).astype(x.dtype)
        t = 1.0 / (1.0 + 0.3275911 * z)
        tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        return 0.5 * x * (1.0 + np.copysign(1.0 - tail * np.exp(-z * z), x)), saved

    text = compared("gelu", Pair(forward, OPERATIONS["gelu"].backward, "short"), portable)
    assert "gelu (short), exact: float64 as NumPy portable of y" in text
    assert "float32 right of" not in text


def test_a_variance_in_one_pass_is_caught_in_float32(portable: Backend) -> None:
    def forward(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> Any:
        mean = np.mean(x, -1, keepdims=True)
        variance = np.mean(x * x, -1, keepdims=True) - mean * mean
        inv_std = 1.0 / np.sqrt(np.maximum(variance, 0.0) + eps)
        saved = OPERATIONS["layer_norm"].forward(x, weight, bias, eps=eps)[1]
        normalized = (x - mean) * inv_std
        y = normalized * weight if bias is None else normalized * weight + bias
        return y, saved._replace(normalized=normalized, inv_std=inv_std)

    text = compared("layer_norm", Pair(forward, OPERATIONS["layer_norm"].backward, "one pass"), portable)
    assert "layer_norm (one pass), far from zero: float32 right of y" in text


def test_a_pair_that_keeps_more_is_caught(portable: Backend) -> None:
    def forward(x: Any) -> Any:
        y, saved = OPERATIONS["tanh"].forward(x)
        return y, (saved, x.copy())

    def backward(dy: Any, saved: Any, *, need: Any = None) -> Any:
        return OPERATIONS["tanh"].backward(dy, saved[0], need=need)

    assert "no more bytes kept" in compared("tanh", Pair(forward, backward), portable)


@pytest.mark.parametrize("kind", ["adds to the slot", "leaves it as it was"])
def test_a_slot_that_is_not_assigned_is_caught(portable: Backend, kind: str) -> None:
    def backward(dy: Any, saved: Any, *, need: Any = None, into: Any = None) -> Any:
        gradients = right("linear", dy, saved, need)
        if into:
            if kind == "adds to the slot":
                into["weight"][...] += gradients[1]
            gradients[1] = into["weight"]
        return tuple(gradients)

    pair = Pair(OPERATIONS["linear"].forward, backward, into=frozenset({"weight"}))
    assert "written into its slot" in compared("linear", pair, portable)


def test_a_pair_that_takes_memory_for_granted_is_caught(portable: Backend) -> None:
    def forward(x: Any) -> Any:
        flat = np.ndarray(x.shape, x.dtype, np.asarray(x).base if x.base is not None else x)  # ignores the strides
        y, saved = OPERATIONS["tanh"].forward(np.array(flat))
        return y, saved

    assert "not contiguous" in compared("tanh", Pair(forward, OPERATIONS["tanh"].backward), portable)


def test_a_float32_result_from_float64_arithmetic_is_not_refused(portable: Backend) -> None:
    """More exact than the portable pair is right."""

    def forward(x: Any) -> Any:
        y = np.tanh(x.astype("float64"))
        saved = OPERATIONS["tanh"].forward(x)[1]
        return y.astype(x.dtype), saved

    assert compared("tanh", Pair(forward, OPERATIONS["tanh"].backward), portable) == ""
