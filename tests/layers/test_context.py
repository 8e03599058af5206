"""The tape, the gradients and the random keys of a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xpformer import initializers as init
from xpformer.analysis.cases import LayerCase
from xpformer.analysis.gradient_check import check_layer, failures
from xpformer.backend import Backend
from xpformer.errors import ShapeError, TapeError, XpformerError
from xpformer.functional import linear, tanh
from xpformer.layers import Block, Context, Dropout, Layer, LayerNorm, Linear, Observer, Parameter
from xpformer.models.vit import ViT, ViTConfig
from xpformer.rng import Rng, host_generator


class Forgetful(Layer):
    """A block stack whose backward takes the second norm for the first."""

    def __init__(self) -> None:
        self.blocks = [Block(4, 2, 5)]

    def forward(self, x: Any, ctx: Context) -> Any:
        return self.blocks[0].forward(x, ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        block = self.blocks[0]
        block.mlp.backward(dy, ctx)
        return block.norm1.backward(dy, ctx)


def pass_of(model: Layer, x: np.ndarray, **options: Any) -> tuple[Context, Any]:
    ctx = Context(model.backend, grads=model.gradients(), **options)
    return ctx, model.forward(model.backend.asarray(x, model.dtype), ctx)


def test_a_backward_in_another_order_names_both(portable: Backend, rng: np.random.Generator) -> None:
    model = Forgetful().to(portable, "float64")
    ctx, y = pass_of(model, rng.standard_normal((2, 3, 4)))
    message = (
        "expected the backward of blocks.0.norm2 (layer_norm), got blocks.0.norm1 (layer_norm); "
        "a backward undoes its forward in the opposite order"
    )
    with pytest.raises(TapeError) as error:
        model.backward(y, ctx)
    assert str(error.value) == message


def test_a_backward_without_a_forward_says_so(portable: Backend) -> None:
    model = Linear(3, 4).to(portable)
    ctx = Context(portable, grads=model.gradients())
    with pytest.raises(TapeError, match="backward of linear, but the tape is empty"):
        model.backward(portable.zeros((2, 4), "float32"), ctx)


def test_a_backward_without_a_tape_says_how_to_get_one(portable: Backend) -> None:
    model = Linear(3, 4).to(portable)
    with pytest.raises(TapeError, match=r"without a tape; make the context with grads=Gradients\(\.\.\.\)"):
        model.backward(portable.zeros((2, 4), "float32"), Context(portable))


def test_a_layer_without_data_says_what_to_call() -> None:
    model = Linear(3, 4)
    with pytest.raises(XpformerError, match=r"call model\.to\('numpy'\) first"):
        model.forward(np.ones((2, 3)), Context(None))  # type: ignore[arg-type]
    with pytest.raises(XpformerError, match=r"Linear is on no backend yet; call \.to\('numpy'\) first"):
        model.store  # noqa: B018


def test_a_layer_that_raises_leaves_the_path_as_it_was(portable: Backend) -> None:
    model = Forgetful().to(portable)
    ctx = Context(portable, grads=model.gradients())
    with pytest.raises(ShapeError):
        model.forward(portable.zeros((2, 3, 5), "float32"), ctx)
    assert ctx.path == ""


def test_inference_keeps_nothing(portable: Backend, rng: np.random.Generator) -> None:
    kept: list[Any] = []

    class Saved(Observer):
        def forward(self, path: str, op: Any, pair: Any, arrays: Any, options: Any, y: Any, saved: Any) -> None:
            kept.append(saved)

    model = ViT(ViTConfig.preset("tiny", dropout=0.5, drop_path=0.5)).to(portable)
    ctx = Context(portable)
    x = rng.standard_normal((2, 1, 6, 6)).astype("float32")
    y = model(portable.asarray(x))
    assert ctx.tape is None
    assert np.array_equal(y, model.forward(portable.asarray(x), Context(portable, observer=Saved())))
    assert kept  # the observer is shown what the operation saved, the context does not hold it


class Twice(Layer):
    """The same layer used twice in a pass: ``f(f(x))``."""

    def __init__(self) -> None:
        self.linear = Linear(4, 4)

    def forward(self, x: Any, ctx: Context) -> Any:
        return self.linear.forward(ctx.forward(tanh, self.linear.forward(x, ctx)), ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        return self.linear.backward(ctx.backward(tanh, self.linear.backward(dy, ctx)), ctx)


class Tied(Layer):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        self.first, self.second = Linear(4, 4), Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Any, ctx: Context) -> Any:
        return self.second.forward(ctx.forward(tanh, self.first.forward(x, ctx)), ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        return self.first.backward(ctx.backward(tanh, self.second.backward(dy, ctx)), ctx)


SHARED = {"used twice": Twice, "tied": Tied}


@pytest.mark.parametrize("kind", SHARED)
def test_a_shared_parameter_gets_the_sum(backend: Backend, kind: str) -> None:
    layer_case = LayerCase(SHARED[kind], lambda g: g.standard_normal((2, 3, 4)))
    assert failures(check_layer(kind, layer_case, backend)) == []


def test_a_tied_parameter_stands_once() -> None:
    assert Tied().named_parameters().keys() == {"first.weight", "first.bias", "second.bias"}


def test_a_shared_layer_has_the_path_of_its_parameters(portable: Backend) -> None:
    class Shared(Layer):
        def __init__(self) -> None:
            self.first = self.second = Linear(3, 3)

    model = Shared().to(portable)
    assert model.second.path == "first"
    assert [p.name for p in model.named_parameters().values()] == ["first.weight", "first.bias"]


def test_gradients_of_several_passes_add_up(backend: Backend, rng: np.random.Generator) -> None:
    model = Twice().to(backend, "float64")
    x = rng.standard_normal((4, 3, 4))
    dy = rng.standard_normal((4, 3, 4))

    def backward(grads: Any, part: slice) -> None:
        ctx = Context(backend, grads=grads)
        model.forward(backend.asarray(x[part]), ctx)
        model.backward(backend.asarray(dy[part]), ctx)

    whole, halves = model.gradients(), model.gradients()
    backward(whole, slice(None))
    backward(halves, slice(0, 1))
    halves.reset()  # forgets what was there
    backward(halves, slice(0, 1))
    backward(halves, slice(1, None))
    for name, gradient in whole.to_host().items():
        assert np.allclose(halves.to_host()[name], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max())


def test_a_parameter_without_a_gradient_gets_zeros(backend: Backend, rng: np.random.Generator) -> None:
    model = Tied().to(backend, "float64")
    grads = model.gradients()
    for _ in range(2):  # a slot that was filled before is emptied again
        grads.reset()
        ctx = Context(backend, grads=grads)
        model.first.forward(backend.asarray(rng.standard_normal((2, 4))), ctx)
        model.first.backward(backend.asarray(rng.standard_normal((2, 4))), ctx)
        found = grads.to_host()
        assert not found["second.bias"].any()
        assert found["first.weight"].all()
    assert np.array_equal(backend.to_numpy(grads["first.weight"]), found["first.weight"])


class Frozen(Layer):
    """Two linear layers, one of them frozen."""

    def __init__(self, frozen: str) -> None:
        self.first, self.second = Linear(4, 5), Linear(5, 3)
        layer = getattr(self, frozen)
        layer.weight.trainable = layer.bias.trainable = False

    def forward(self, x: Any, ctx: Context) -> Any:
        return self.second.forward(self.first.forward(x, ctx), ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        return self.first.backward(self.second.backward(dy, ctx), ctx, input_gradient=ctx.input_gradient)


class Needs(Observer):
    """Which gradients each backward was asked for."""

    def __init__(self) -> None:
        self.seen: dict[str, set[str]] = {}

    def backward(self, path: str, op: Any, pair: Any, dy: Any, gradients: Any) -> None:
        self.seen[path] = {n for n, g in gradients.items() if g is not None}


def test_frozen_parameters_get_no_gradient_and_their_products_are_not_computed(
    backend: Backend, rng: np.random.Generator
) -> None:
    seen = {}
    for frozen in ("first", "second"):
        model = Frozen(frozen).to(backend, "float64")
        needs = Needs()
        ctx, y = pass_of(model, rng.standard_normal((2, 4)), observer=needs)
        assert model.backward(y, ctx) is None
        assert ctx.grads is not None
        assert ctx.grads.to_host().keys() == {n for n in model.state() if not n.startswith(frozen)}
        assert ctx.tape == []
        seen[frozen] = needs.seen
    assert seen["second"] == {"second": {"x"}, "first": {"weight", "bias"}}
    assert seen["first"] == {"second": {"x", "weight", "bias"}}  # the first layer's backward is not run at all


def test_frozen_parameters_leave_the_other_gradients_as_they_are(portable: Backend) -> None:
    def gradients(freeze: bool) -> dict[str, np.ndarray]:
        generator = host_generator(0, "frozen")
        model = ViT(ViTConfig.preset("tiny"))
        for name, parameter in model.named_parameters().items():
            parameter.trainable = not (freeze and name.startswith("blocks.1"))
        model.to(portable, "float64")
        model.load_state({n: generator.standard_normal(p.shape) for n, p in model.named_parameters().items()})
        ctx, y = pass_of(model, generator.standard_normal((2, 1, 6, 6)))
        model.backward(portable.asarray(generator.standard_normal(y.shape)), ctx)
        assert ctx.grads is not None
        return ctx.grads.to_host()

    part, whole = gradients(True), gradients(False)
    assert part.keys() == {n for n in whole if not n.startswith("blocks.1")}
    assert all(np.array_equal(part[n], whole[n]) for n in part)


def test_the_input_gradient_is_computed_only_if_asked(backend: Backend, rng: np.random.Generator) -> None:
    model = ViT(ViTConfig.preset("tiny")).to(backend, "float64")
    x = rng.standard_normal((2, 1, 6, 6))
    for wanted in (False, True):
        ctx, y = pass_of(model, x, input_gradient=wanted)
        dx = model.backward(y, ctx)
        assert (dx is not None) is wanted
        assert dx is None or tuple(dx.shape) == x.shape
        assert ctx.tape == []


def test_observers_see_every_layer_and_operation_in_order(portable: Backend, rng: np.random.Generator) -> None:
    events: list[str] = []

    class Log(Observer):
        def enter(self, layer: Layer, direction: str) -> None:
            events.append(f"enter {layer.path or 'model'} {direction}")

        def leave(self, layer: Layer, direction: str, value: Any) -> None:
            events.append(f"leave {layer.path or 'model'} {direction}")

        def before(self, path: str, op: Any, direction: str) -> None:
            events.append(f"{op.name} {direction} at {path}")

    model = Frozen("second").to(portable, "float64")
    ctx, y = pass_of(model, rng.standard_normal((2, 4)), observer=Log())
    model.backward(y, ctx)
    forward = [
        "enter model forward",
        "enter first forward", "linear forward at first", "leave first forward",
        "enter second forward", "linear forward at second", "leave second forward",
        "leave model forward",
    ]  # fmt: skip
    backward = [
        "enter model backward",
        "enter second backward", "linear backward at second", "leave second backward",
        "enter first backward", "linear backward at first", "leave first backward",
        "leave model backward",
    ]  # fmt: skip
    assert events == forward + backward


def test_observers_that_override_nothing_change_nothing(portable: Backend, rng: np.random.Generator) -> None:
    model = ViT(ViTConfig.preset("tiny")).to(portable)
    x = rng.standard_normal((2, 1, 6, 6)).astype("float32")
    ctx, y = pass_of(model, x, observer=Observer())
    model.backward(y, ctx)
    assert np.array_equal(y, model(portable.asarray(x)))


# ---- random masks ----


class Drops(Layer):
    """Two dropouts, one of them used twice."""

    def __init__(self) -> None:
        self.first, self.second = Dropout(0.4), Dropout(0.4)

    def forward(self, x: Any, ctx: Context) -> Any:
        parts = self.first.forward(x, ctx), self.second.forward(x, ctx), self.first.forward(x, ctx)
        return ctx.backend.xp.stack(parts)


def masks(backend: Backend, rng: Rng | None, count: int = 6) -> np.ndarray:
    model = Drops().to(backend)
    ones = backend.asarray(np.ones((count, 3, 4), "float32"))
    return np.asarray(backend.to_numpy(model.forward(ones, Context(backend, rng=rng))))


def test_dropout_masks_have_the_same_bits_on_every_backend(backend: Backend, portable: Backend) -> None:
    assert np.array_equal(masks(backend, Rng(1, 2)), masks(portable, Rng(1, 2)))


def test_two_half_batches_get_the_halves_of_the_whole_mask(backend: Backend) -> None:
    whole = masks(backend, Rng(1, 2, first_sample=5), 6)
    parts = [masks(backend, Rng(1, 2, first_sample=5), 2), masks(backend, Rng(1, 2, first_sample=7), 4)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_masks_differ_by_seed_step_layer_and_use(portable: Backend) -> None:
    found = [m for rng in (Rng(1, 2), Rng(1, 3), Rng(2, 2)) for m in masks(portable, rng)]
    assert len({m.tobytes() for m in found}) == 9


def test_inference_drops_nothing(backend: Backend) -> None:
    assert (masks(backend, None) == 1.0).all()


# ---- parameters ----


def test_the_shape_of_initial_values_does_not_depend_on_the_backend(backend: Backend, portable: Backend) -> None:
    ours, theirs = (ViT(ViTConfig.preset("tiny"), seed=5).to(b, "float64").state() for b in (backend, portable))
    assert all(np.array_equal(ours[n], theirs[n]) for n in theirs)
    other = ViT(ViTConfig.preset("tiny"), seed=6).to(portable, "float64").state()
    assert not np.array_equal(other["blocks.0.mlp.fc1.weight"], theirs["blocks.0.mlp.fc1.weight"])


def test_moving_a_model_keeps_its_weights(backend: Backend, portable: Backend) -> None:
    model = ViT(ViTConfig.preset("tiny"), seed=5).to(portable)
    before = model.state()
    after = model.to(backend, "float64").state()
    assert all(a.dtype == np.float64 and np.array_equal(a, before[n]) for n, a in after.items())
    assert model.dtype == "float64"


def test_linear_is_the_operation(portable: Backend, rng: np.random.Generator) -> None:
    model = Linear(3, 4, bias_init=init.normal(1.0)).to(portable, "float64")
    x = rng.standard_normal((2, 3))
    assert np.array_equal(model(x), linear(x, model.weight.data, model.bias and model.bias.data))


def test_norm_starts_as_plain_normalization(portable: Backend, rng: np.random.Generator) -> None:
    y = LayerNorm(50, eps=0.0).to(portable, "float64")(rng.standard_normal((3, 50)))
    assert np.allclose(y.mean(-1), 0.0, atol=1e-14)
    assert np.allclose(y.std(-1), 1.0, atol=1e-14)


def test_a_parameter_says_which_it_is() -> None:
    parameter = Parameter((2, 3), init.zeros)
    parameter.name = "head.weight"
    assert repr(parameter) == "<Parameter head.weight (2, 3)>"
    assert parameter.size == 6
