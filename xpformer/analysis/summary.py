"""What a model consists of and what a training step of it costs: layers, shapes, parameters, FLOPs, bytes kept.

Everything is observed in one real forward and backward pass, nothing is computed from formulas of a model.

- **FLOPs** are those of the matrix products, as :mod:`xpformer.analysis.costs` counts them.
- **Bytes kept** is what stands on the tape after the forward, waiting for the backward: the activation memory.  Two
  saved tuples often name one array, or two views of it (query, key and value lie in the output of one projection), so
  memory is counted by buffer, once, for the layer that kept it first, and whole even where a view shows a part of it:
  the view keeps all of it alive.  What is there without the tape does not count: parameters, constants and the input.
- With **recomputation** a block keeps its input alone; its second forward counts as backward, and what it keeps then,
  one block at a time, is not in the bytes kept.
- The loss is no part of the model and not in these numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from xpformer.analysis.costs import Counts
from xpformer.analysis.tree import depth as depth_of
from xpformer.analysis.tree import fold as fold_rows
from xpformer.analysis.tree import guides, name, scaled, times, totals
from xpformer.functional._op import Op, Pair
from xpformer.layers import Context, Layer
from xpformer.memory import arrays_in, buffer
from xpformer.parameters import Constant, Parameter
from xpformer.rng import Rng, host_generator

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Cost:
    """Numbers that add up over layers."""

    parameters: int = 0
    """A parameter that two layers share counts for the first."""
    forward: int = 0
    """FLOPs."""
    backward: int = 0
    """FLOPs."""
    kept: int = 0
    """Bytes kept on the tape for the backward."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.forward + other.forward,
            self.backward + other.backward,
            self.kept + other.kept,
        )


@dataclass(frozen=True)
class Row:
    """One layer."""

    path: str
    """``blocks.3.norm1``; empty for the model itself."""
    kind: str
    """The name of its class."""
    shape: tuple[int, ...] | None
    """Of its output; ``None`` where it gave no single array or did not run."""
    own: Cost
    """Of the layer without the layers below it."""
    total: Cost
    """Of the layer and all below it."""
    idle: bool
    """It handed its input on and did nothing, as dropout at rate 0."""

    @property
    def depth(self) -> int:
        """How many layers stand above it; a list of layers is no layer: ``blocks.3`` has depth 1."""
        return depth_of(self.path)


@dataclass(frozen=True)
class Summary:
    """The layers of a model, parents first, and what they cost with the given batch."""

    rows: tuple[Row, ...]
    batch: int
    input_shape: tuple[int, ...]
    """Of one sample."""
    dtype: str
    backend: str
    trainable: int
    """Parameters that get a gradient."""
    recompute: bool = False

    @property
    def total(self) -> Cost:
        """Of the whole model."""
        return self.rows[0].total

    @property
    def flops(self) -> int:
        """FLOPs of a forward and a backward pass of the batch."""
        return self.total.forward + self.total.backward

    def to_dict(self) -> dict[str, Any]:
        """What a program reads; JSON can hold it."""
        rows = [{**asdict(row), "shape": None if row.shape is None else list(row.shape)} for row in self.rows]
        return {
            "batch": self.batch,
            "input_shape": list(self.input_shape),
            "dtype": self.dtype,
            "backend": self.backend,
            "trainable": self.trainable,
            "recompute": self.recompute,
            "flops": self.flops,
            "total": asdict(self.total),
            "layers": rows,
        }

    def render(self, *, depth: int | None = None, idle: bool = False, fold: bool = True) -> Table:
        """A table with the layers as a tree; each line's numbers include the layers below it.

        Args:
            depth: how many levels below the model to show; ``None`` shows all.
            idle: also show layers that did nothing.
            fold: show equal blocks that follow each other once, ``blocks.0-5``, with the numbers of one.
        """
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        rows = [r for r in self.rows if (depth is None or r.depth <= depth)]
        shown = [r for r in rows if idle or not r.idle]
        lines = fold_rows(shown, _alike) if fold else [[r] for r in shown]
        shape = times((self.batch, *self.input_shape))
        notes = ["numbers include the layers below; FLOPs of matrix products; kept: bytes that wait for the backward"]
        if self.recompute:
            notes.append("recomputed: blocks keep their input, their second forward is in backward")
        if hidden := len(rows) - sum(idle or not r.idle for r in rows):
            notes.append(f"{hidden} layer{'s' * (hidden > 1)} that did nothing (dropout at rate 0) not shown")
        table = Table(
            title=f"{self.rows[0].kind}, input {shape}, {self.dtype} on {self.backend}",
            caption="; ".join(notes),
            title_justify="left",
            caption_justify="left",
            show_footer=True,
            box=None,
            pad_edge=False,
        )
        table.add_column("layer", "total" if self._all_trainable else f"total ({self.trainable:,} trainable)")
        table.add_column("output", style="dim")
        footer = (f"{self.total.parameters:,}", *_costs(self.total))
        for header, text in zip(("parameters", "forward", "backward", "kept"), footer, strict=True):
            table.add_column(header, text, justify="right", no_wrap=True, min_width=max(8, len(header), len(text)))
        for line, guide in zip(lines, guides([line[0].path for line in lines]), strict=True):
            row = line[0]
            text = f"[dim]{guide}[/]{escape(name(line))} [dim]{row.kind}[/]" if row.path else f"[b]{row.kind}[/]"
            layer, output = Text.from_markup(text), Text("" if row.shape is None else times(row.shape))
            for cell in (layer, output):
                cell.no_wrap, cell.overflow = True, "ellipsis"
            parameters = f"{row.total.parameters:,}" if row.total.parameters else ""
            table.add_row(layer, output, parameters, *_costs(row.total), style="dim" if row.idle else None)
        return table

    @property
    def _all_trainable(self) -> bool:
        return self.trainable == self.total.parameters


def summarize(
    model: Layer, input_shape: Sequence[int], ids: int = 0, *, batch: int = 1, recompute: bool = False
) -> Summary:
    """Run ``model`` forward and backward once on random input and report each layer.

    The model must stand on a backend; its weights are not changed.  Its gradients are taken as in training, with
    dropout masks and without a gradient of the input.

    Args:
        model: from one array to another.
        input_shape: of one sample, such as (C, H, W).
        ids: where the input holds ids, as of tokens, how many there are; 0 for real numbers.
        batch: number of samples.
        recompute: whether the blocks keep their input alone and run again in the backward.
    """
    backend = model.backend
    draw, shape = host_generator(0, "summary"), (batch, *input_shape)
    x = (
        backend.asarray(draw.integers(0, ids, shape))
        if ids
        else backend.asarray(draw.standard_normal(shape, dtype="float32"), model.dtype)
    )
    observer = _Costs()
    ctx = Context(backend, rng=Rng(0), grads=model.gradients(), observer=observer, recompute=recompute)
    y = model.forward(x, ctx)
    kept = _kept(ctx, [x, *_held(model)])
    xp = backend.xp
    model.backward(xp.ones(y.shape, dtype=y.dtype, device=backend.device), ctx)

    rows: list[Row] = []
    flops, seen = observer.flops(), set[int]()
    for path, layer in model.named_layers():
        own = replace(flops.get(path, Cost()), parameters=_own_parameters(layer, seen), kept=kept.get(path, 0))
        idle = path in observer.idle and own == Cost()
        rows.append(Row(path, type(layer).__name__, observer.shapes.get(path), own, own, idle))
    trainable = model.count_parameters(trainable=True)
    total = totals({row.path: row.own for row in rows}, Cost())
    rows = [replace(row, total=total[row.path]) for row in rows]
    return Summary(tuple(rows), batch, tuple(input_shape), model.dtype, backend.spec, trainable, recompute)


class _Costs(Counts):
    """Output shapes by layer, and the layers that returned what they were given, beside the counts."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.idle: set[str] = set()
        self._last: Any = None

    def enter(self, layer: Layer, direction: str) -> None:
        super().enter(layer, direction)
        if direction == "forward":
            self.idle.add(layer.path)

    def leave(self, layer: Layer, direction: str, value: Any) -> None:
        super().leave(layer, direction, value)
        if direction == "forward":
            if value is not self._last:
                self.idle.discard(layer.path)
            if hasattr(value, "shape"):
                self.shapes[layer.path] = tuple(value.shape)
            self._last = value

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        super().forward(path, op, pair, arrays, options, y, saved)
        self.idle -= {path[:i] for i in range(len(path) + 1)}
        self._last = y

    def flops(self) -> dict[str, Cost]:
        """By layer."""
        found: dict[str, Cost] = {}
        for place, count in self.by_place.items():
            cost = Cost(forward=count.forward, backward=count.backward)
            found[place.path] = found.get(place.path, Cost()) + cost
        return found


def _own_parameters(layer: Layer, seen: set[int]) -> int:
    """Elements of the parameters that ``layer`` itself holds, without those that an earlier layer held."""
    own = [v for v in vars(layer).values() if isinstance(v, Parameter) and id(v) not in seen]
    seen.update(map(id, own))
    return sum(p.size for p in own)


def _held(model: Layer) -> Iterator[Any]:
    """The arrays that the model holds between passes."""
    yield from (segment.data for segment in model.store.segments)
    for _, layer in model.named_layers():
        yield from (v.data for v in vars(layer).values() if isinstance(v, Constant | Parameter))


def _kept(ctx: Context, held: Sequence[Any]) -> dict[str, int]:
    """Bytes of the buffers on the tape by the path that kept them first, without those of ``held``."""
    seen = {buffer(x)[0] for x in held}
    kept: dict[str, int] = {}
    for entry in ctx.tape or ():
        for x in arrays_in(entry.saved):
            key, count = buffer(x)
            if key not in seen:
                seen.add(key)
                kept[entry.path] = kept.get(entry.path, 0) + count
    return kept


def _alike(row: Row) -> Row:
    """What equal blocks have in common: all but the path."""
    return replace(row, path="")


def _costs(cost: Cost) -> tuple[str, str, str]:
    """FLOPs forward and backward and bytes kept, as people read them."""
    return scaled(cost.forward, 1000, ""), scaled(cost.backward, 1000, ""), scaled(cost.kept, 1024, "iB")
