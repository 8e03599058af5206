"""Mistakes in layers, not in operations: the same harness finds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.layers.test_context import Tied, Twice
from xpformer.analysis.cases import LAYERS, LayerCase
from xpformer.analysis.gradient_check import check_layer, failures
from xpformer.backend import Backend
from xpformer.errors import TapeError
from xpformer.functional import split_heads
from xpformer.functional.window_partition import Windows
from xpformer.layers import (
    MLP,
    Block,
    Context,
    Dropout,
    DropPath,
    FusedLoRA,
    Layer,
    Linear,
    LoRA,
    MultiHeadAttention,
    TiedHead,
    WindowAttention,
)
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.parameters import Gradients


def normal(build: Any, *shape: int) -> LayerCase:
    return LayerCase(build, lambda generator: generator.standard_normal(shape))


def found(layer_case: LayerCase, backend: Backend) -> str:
    """What the harness says."""
    return "\n".join(failures(check_layer("planted", layer_case, backend)))


@pytest.mark.parametrize("shared", [Tied, Twice])
def test_forgotten_tied_gradient(monkeypatch: pytest.MonkeyPatch, portable: Backend, shared: type[Layer]) -> None:
    def assign(self: Gradients, parameter: Any, gradient: Any) -> None:
        self._views[parameter.name][...] = gradient
        self._empty.discard(parameter.name)

    monkeypatch.setattr(Gradients, "add", assign)
    text = found(normal(shared, 2, 3, 4), portable)
    assert "finite difference of all" in text
    assert ".weight" in text


class ForgotFirstResidual(Block):
    def backward(self, dy: Any, ctx: Context) -> Any:
        dy = dy + self.norm2.backward(self.mlp.backward(dy, ctx), ctx)
        return self.norm1.backward(self.attention.backward(dy, ctx), ctx)


class ForgotSecondResidual(Block):
    def backward(self, dy: Any, ctx: Context) -> Any:
        dy = self.norm2.backward(self.mlp.backward(dy, ctx), ctx)
        return dy + self.norm1.backward(self.attention.backward(dy, ctx), ctx)


class AddedTheGivenGradient(Block):
    """The first branch gets dy as it came, without what the second branch added."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        second = self.norm2.backward(self.mlp.backward(dy, ctx), ctx)
        return dy + second + self.norm1.backward(self.attention.backward(dy, ctx), ctx)


@pytest.mark.parametrize("block", [ForgotFirstResidual, ForgotSecondResidual, AddedTheGivenGradient])
def test_residual_branch_forgotten(portable: Backend, block: type[Block]) -> None:
    assert found(normal(lambda: Block(6, 2, 7), 3, 4, 6), portable) == ""
    assert "finite difference of x" in found(normal(lambda: block(6, 2, 7), 3, 4, 6), portable)


class ForgotTheScale(LoRA):
    """The gradient of the difference counts once, not alpha / r times."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        scale, self.scale = self.scale, 1.0
        dx = super().backward(dy, ctx)
        self.scale = scale
        return dx


class ForgotTheDifference(LoRA):
    """The input's gradient passes through the frozen weight alone."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        return super().backward(dy, ctx) - (self.scale * dy @ self.lora_b.data.mT) @ self.lora_a.data.mT


@pytest.mark.parametrize("lora", [ForgotTheScale, ForgotTheDifference])
def test_low_rank_difference(portable: Backend, lora: type[LoRA]) -> None:
    assert found(normal(lambda: LoRA(Linear(5, 6), 2, 3.0), 3, 4, 5), portable) == ""
    assert "finite difference of x" in found(normal(lambda: lora(Linear(5, 6), 2, 3.0), 3, 4, 5), portable)


class AnotherPartsGradient(FusedLoRA):
    """The query's difference gets the gradient of the value's columns, and the other way round."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        right, turned = self.columns, dict(zip(self.columns, reversed(self.columns.values()), strict=True))
        self.columns = turned
        dx = super().backward(dy, ctx)
        self.columns = right
        return dx


def test_low_rank_differences_of_parts(portable: Backend) -> None:
    widths = {"q": 3, "k": 2, "v": 3}
    assert found(normal(lambda: FusedLoRA(Linear(5, 8), widths, "qv", 2, 3.0), 3, 4, 5), portable) == ""
    text = found(normal(lambda: AnotherPartsGradient(Linear(5, 8), widths, "qv", 2, 3.0), 3, 4, 5), portable)
    assert "finite difference of q.lora_a" in text
    assert "finite difference of v.lora_b" in text
    assert "finite difference of weight" not in text


class ForgotTheEmbedding(GPT):
    """The tied table gets the head's gradient alone."""

    def backward(self, dlogits: Any, ctx: Context) -> None:
        grads = ctx.grads
        super().backward(dlogits, ctx)
        assert grads is not None
        grads[self.embedding.weight.name][...] = ctx.kept  # type: ignore[attr-defined]


class KeptAfterTheHead(TiedHead):
    """Keeps the table's gradient as the head leaves it."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        dx = super().backward(dy, ctx)
        assert ctx.grads is not None
        ctx.kept = ctx.grads[self.weight.name].copy()  # type: ignore[attr-defined]
        return dx


def test_the_embeddings_share_of_a_tied_gradient_is_missed(portable: Backend) -> None:
    def build() -> Layer:
        model = ForgotTheEmbedding(GPTConfig.preset("tiny"))
        model.head = KeptAfterTheHead(model.embedding)
        return model

    text = found(LayerCase(build, LAYERS["GPT"].input), portable)
    assert "finite difference of embedding.weight" in text
    assert "finite difference of positions.weight" not in text


class NormedTwice(Block):
    """The backward of a post-norm block goes through the norm of the other branch."""

    def branches(self) -> Any:
        first, second = super().branches()
        swapped = ((second[0], *first[1:]), (first[0], *second[1:]))
        return swapped if self.swapped else (first, second)

    swapped = False

    def backward(self, dy: Any, ctx: Context) -> Any:
        self.swapped = True
        return super().backward(dy, ctx)


def test_another_norms_backward_is_named(portable: Backend) -> None:
    with pytest.raises(TapeError, match=r"expected the backward of norm2 \(layer_norm\), got norm1 \(layer_norm\)"):
        found(normal(lambda: NormedTwice(6, 2, 7, order="post"), 3, 4, 6), portable)


class Redrawn(Dropout):
    """Backward asks for a new key."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        ctx.backward(self.op, dy)
        key = ctx.mask_key()
        assert key is not None
        return self.op.forward(dy, rate=self.rate, key=key)[0]


def test_mask_redrawn_in_backward(portable: Backend) -> None:
    assert "finite difference of x" in found(normal(lambda: Redrawn(0.4), 4, 3, 5), portable)


class Unscaled(DropPath):
    def backward(self, dy: Any, ctx: Context) -> Any:
        return super().backward(dy, ctx) * (1.0 - self.rate)


def test_drop_path_not_scaled(portable: Backend) -> None:
    assert "finite difference of x" in found(normal(lambda: Unscaled(0.4), 9, 3), portable)


class QueryKeySwapped(MultiHeadAttention):
    """The gradients of query and key are packed in the wrong order."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        real = ctx.backward

        def swapped(op: Any, gradient: Any, **options: Any) -> Any:
            if op is split_heads:
                gradient = (gradient[1], gradient[0], gradient[2])
            return real(op, gradient, **options)

        ctx.backward = swapped  # type: ignore[method-assign]
        try:
            return super().backward(dy, ctx)
        finally:
            ctx.backward = real  # type: ignore[method-assign]


def test_query_and_key_swapped(portable: Backend) -> None:
    assert "finite difference of qkv.weight" in found(normal(lambda: QueryKeySwapped(6, 2), 3, 4, 6), portable)


class ForgotTheTable(WindowAttention):
    """The scores' gradient does not reach the relative position bias."""

    def attend_backward(self, dy: Any, ctx: Context) -> Any:
        dx, dbias = super().attend_backward(dy, ctx)
        return dx, 0.0 * dbias


class ReadTheFirstWindow(WindowAttention):
    """The gradient of one window, as if its mask alone had been added."""

    def attend_backward(self, dy: Any, ctx: Context) -> Any:
        dx, dbias = super().attend_backward(dy, ctx)
        return dx, np.concatenate([dbias[:1], 0.0 * dbias[1:]])


@pytest.mark.parametrize("kind", [ForgotTheTable, ReadTheFirstWindow])
def test_the_table_of_windows(portable: Backend, kind: type[WindowAttention]) -> None:
    windows = Windows((3, 5), (2, 3), (1, 2))
    assert found(normal(lambda: WindowAttention(6, 2, windows=windows), 2, 15, 6), portable) == ""
    text = found(normal(lambda: kind(6, 2, windows=windows), 2, 15, 6), portable)
    assert "finite difference of table" in text
    assert "finite difference of x" not in text


class WroteTheInput(MLP):
    """An in-place operation where NumPy would let it."""

    def forward(self, x: Any, ctx: Context) -> Any:
        x *= 1.0001
        return super().forward(x, ctx)


def test_a_layer_that_writes_its_input_is_refused_on_read_only_numpy() -> None:
    from tests.readonly import ReadOnlyBackend

    with pytest.raises(ValueError, match="would write an array"):
        found(normal(lambda: WroteTheInput(4, 5), 2, 4), ReadOnlyBackend())


def test_without_random_weights_a_forgotten_branch_would_pass(portable: Backend) -> None:
    """At its initial values a zero output projection hides the whole branch: random weights matter."""

    class Branch(Layer):
        def __init__(self) -> None:
            self.mlp = MLP(4, 5)

        def forward(self, x: Any, ctx: Context) -> Any:
            return x + self.mlp.forward(x, ctx)

        def backward(self, dy: Any, ctx: Context) -> Any:
            self.mlp.backward(dy, ctx)
            return dy  # forgot the branch

    model = Branch().to(portable, "float64")
    zero = {n: np.zeros_like(a) if n.startswith("mlp.fc2") else a for n, a in model.state().items()}
    model.load_state(zero)
    x = portable.asarray(np.ones((2, 4)))
    ctx = Context(portable, grads=model.gradients())
    y = model.forward(x, ctx)
    assert np.array_equal(model.backward(y, ctx), y)  # indeed right there
    assert "finite difference of x" in found(normal(Branch, 2, 4), portable)


@pytest.mark.parametrize("name", ["Block", "ViT, tiny"])
def test_the_harness_passes_what_is_right(portable: Backend, name: str) -> None:
    assert found(LAYERS[name], portable) == ""
