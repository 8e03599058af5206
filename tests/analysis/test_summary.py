from __future__ import annotations

import io
import json

import numpy as np
import pytest

from tests.conftest import backend_or_skip
from xpformer.analysis.summary import Cost, Summary, summarize
from xpformer.layers import Context, Dropout, Layer, LayerNorm, Linear
from xpformer.layers.activation import Activation
from xpformer.models.vit import ViT, ViTConfig

B, D, H, K = 5, 7, 11, 3


class TwoLayers(Layer):
    """relu between two products, with a layer norm in front."""

    def __init__(self, dropout: float = 0.0) -> None:
        self.norm = LayerNorm(D)
        self.fc1 = Linear(D, H)
        self.activation = Activation("relu")
        self.dropout = Dropout(dropout)
        self.fc2 = Linear(H, K, bias=False)

    def forward(self, x, ctx):  # type: ignore[no-untyped-def]
        x = self.activation.forward(self.fc1.forward(self.norm.forward(x, ctx), ctx), ctx)
        return self.fc2.forward(self.dropout.forward(x, ctx), ctx)

    def backward(self, dy, ctx):  # type: ignore[no-untyped-def]
        dy = self.dropout.backward(self.fc2.backward(dy, ctx), ctx)
        return self.norm.backward(self.fc1.backward(self.activation.backward(dy, ctx), ctx), ctx)


class Shared(Layer):
    """One linear layer used twice, and a second layer that holds its weight."""

    def __init__(self) -> None:
        self.first, self.second = Linear(D, D), Linear(D, D)
        self.second.weight = self.first.weight

    def forward(self, x: object, ctx: Context) -> object:
        return self.second.forward(self.first.forward(self.first.forward(x, ctx), ctx), ctx)

    def backward(self, dy: object, ctx: Context) -> object:
        return self.first.backward(self.first.backward(self.second.backward(dy, ctx), ctx), ctx)


def text(summary: Summary, width: int = 100, **options: object) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(summary.render(**options))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("spec", ["numpy:portable", "strict", "torch", "torch:meta"])
def test_kept_bytes_are_those_counted_by_hand(spec: str) -> None:
    summary = summarize(TwoLayers().to(backend_or_skip(spec), "float64"), (D,), batch=B)
    kept = {row.path: row.own.kept for row in summary.rows}
    assert kept["norm"] == 8 * (B * D + B), "the normalized x and 1 / standard deviation; the weight is the model's"
    assert kept["fc1"] == 8 * B * D, "its input"
    assert kept["activation"] in (B * H, 8 * B * H), "relu's mask, its input or its output"
    assert kept["fc2"] in (8 * B * H, 0), "its input, nothing if relu keeps that array too"
    assert summary.total.kept == sum(kept.values())


def test_an_array_that_two_operations_keep_counts_once() -> None:
    plain = summarize(TwoLayers().to("numpy:portable"), (D,), batch=B)
    assert {row.path: row.own.kept for row in summarize(Shared().to("numpy:portable"), (D,), batch=B).rows} == {
        "": 0,
        "first": 4 * B * D,  # the input is the caller's; the second use keeps its own input
        "second": 4 * B * D,
    }
    assert plain.total.kept < 4 * (B * D + B + B * D + 2 * B * H) + 1


def test_views_keep_their_whole_buffer_once() -> None:
    """Query, key and value are views of one projection: its 3 D numbers a token count, and count once."""
    model = ViT(ViTConfig.preset("tiny")).to("numpy:portable")
    summary = summarize(model, (1, 6, 6), batch=2)
    tokens, dim, heads = 10, 8, 2
    attention = next(row for row in summary.rows if row.path == "blocks.0.attention")
    assert attention.own.kept == 4 * 2 * (3 * tokens * dim + heads * tokens * tokens)


def test_flops_of_two_products() -> None:
    summary = summarize(TwoLayers().to("numpy"), (D,), batch=B)
    rows = {row.path: row for row in summary.rows}
    assert (rows["fc1"].own.forward, rows["fc1"].own.backward) == (2 * B * D * H, 4 * B * D * H)
    assert (rows["fc2"].own.forward, rows["fc2"].own.backward) == (2 * B * H * K, 4 * B * H * K)
    assert summary.total.parameters == 2 * D + D * H + H + H * K
    assert 2 * summary.total.forward == summary.total.backward


def test_a_frozen_weight_costs_no_backward() -> None:
    model = TwoLayers()
    model.fc1.weight.trainable = False
    summary = summarize(model.to("numpy"), (D,), batch=B)
    row = next(row for row in summary.rows if row.path == "fc1")
    assert row.own.backward == 2 * B * D * H
    assert summary.trainable == summary.total.parameters - D * H
    assert f"({summary.trainable:,} trainable)" in text(summary)


def test_a_layer_used_twice_counts_twice_and_a_shared_weight_once() -> None:
    summary = summarize(Shared().to("numpy"), (D,), batch=B)
    rows = {row.path: row for row in summary.rows}
    assert rows["first"].own.forward == 2 * rows["second"].own.forward == 4 * B * D * D
    assert rows["first"].own.backward == 2 * rows["second"].own.backward == 8 * B * D * D
    assert (rows["first"].own.parameters, rows["second"].own.parameters) == (D * D + D, D)
    assert summary.total.parameters == Shared().count_parameters() == D * D + 2 * D


def test_the_seed_model_costs_what_was_measured() -> None:
    """13.34 GFLOP a step of 100 images, counted independently in the performance study."""
    summary = summarize(ViT(ViTConfig.preset("seed")).to("numpy"), (1, 28, 28), batch=4)
    assert 25 * summary.flops == pytest.approx(13.34e9, rel=5e-4)
    assert summary.total.parameters == summary.trainable == 847_498
    rows = {row.path: row for row in summary.rows}
    assert rows["blocks.2.mlp.fc1"].shape == (4, 49, 192)
    assert rows["blocks.2.mlp.fc1"].depth == 3
    assert rows["dropout"].idle
    assert not rows["positions"].idle, "fixed positions are added without an operation, but they are added"


def test_recomputed_blocks_keep_their_input_and_run_forward_twice() -> None:
    model = ViT(ViTConfig.preset("seed", depth=2)).to("numpy")
    kept, again = (summarize(model, (1, 28, 28), batch=4, recompute=r) for r in (False, True))
    assert again.total.forward == kept.total.forward
    rows, before = ({row.path: row for row in s.rows} for s in (again, kept))
    for path in ("blocks.0", "blocks.1"):
        assert rows[path].total.backward == before[path].total.backward + before[path].total.forward
        assert rows[path].total.kept <= 4 * 49 * 96 * 4 < before[path].total.kept / 10
    assert rows["head"] == before["head"]
    assert again.to_dict()["recompute"]
    assert "their second forward is in backward" in " ".join(text(again).split())
    assert "second forward" not in text(kept)


@pytest.mark.parametrize("preset", ["tiny", "digits", "small"])
def test_rows_add_up_to_the_model(preset: str) -> None:
    config = ViTConfig.preset(preset)
    model = ViT(config).to("numpy")
    before = model.state()
    summary = summarize(model, (config.channels, config.image_size, config.image_size), batch=2)
    assert sum((row.own for row in summary.rows), Cost()) == summary.total
    assert summary.total.parameters == model.count_parameters()
    assert summary.rows[0].shape == (2, config.classes)
    assert [row.path for row in summary.rows] == [path for path, _ in model.named_layers()]
    for name, value in model.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_dropout_masks_are_kept_as_in_training() -> None:
    with_masks = summarize(TwoLayers(dropout=0.5).to("numpy:portable"), (D,), batch=B)
    rows = {row.path: row for row in with_masks.rows}
    assert rows["dropout"].own.kept > 0
    assert not rows["dropout"].idle
    without = {row.path: row for row in summarize(TwoLayers().to("numpy:portable"), (D,), batch=B).rows}
    assert without["dropout"].idle
    assert without["dropout"].own == Cost()


def test_to_dict_is_json() -> None:
    found = json.loads(json.dumps(summarize(TwoLayers().to("numpy"), (D,), batch=B).to_dict()))
    assert found["input_shape"] == [D]
    assert found["flops"] == found["total"]["forward"] + found["total"]["backward"]
    assert [row["path"] for row in found["layers"]] == ["", "norm", "fc1", "activation", "dropout", "fc2"]
    assert found["layers"][2]["shape"] == [B, H]


def test_render_folds_equal_blocks_and_hides_what_does_nothing() -> None:
    summary = summarize(ViT(ViTConfig.preset("seed")).to("numpy"), (1, 28, 28))
    folded = text(summary)
    assert "blocks.0-5 Block" in folded
    assert "Dropout" not in folded
    assert folded.count("qkv Linear") == 1
    assert "847,498" in folded
    everything = text(summary, 200, fold=False, idle=True)
    assert everything.count("qkv Linear") == 6
    assert "DropPath" in everything
    assert len(everything.splitlines()) >= len(summary.rows) + 4, "a line for each layer, title, header, totals, note"
    top = text(summary, depth=1)
    assert "blocks.0-5" in top
    assert "norm1" not in top


def test_render_draws_a_tree() -> None:
    lines = [line.split("  ")[0] for line in text(summarize(TwoLayers().to("numpy"), (D,))).splitlines()]
    assert lines[2:6] == ["TwoLayers", "├ norm LayerNorm", "├ fc1 Linear", "├ activation Activation"]
    assert lines[6] == "└ fc2 Linear"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_render_fits_the_terminal_and_cuts_no_number(width: int) -> None:
    summary = summarize(ViT(ViTConfig.preset("seed")).to("numpy"), (1, 28, 28))
    printed = text(summary, width)
    assert max(map(len, printed.splitlines())) <= width
    assert printed.count("847,498") == 2
    assert "44.5 M" in printed
