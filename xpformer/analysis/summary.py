"""What a model consists of and what a training step of it costs: layers, shapes, parameters, FLOPs, bytes kept.

Everything is observed in one real forward and backward pass, nothing is computed from formulas of a model.

- **FLOPs** are those of the matrix products, two for each multiply-add; elementwise work is not counted.  The backward
  counts only the gradients that were taken: a frozen weight, or an image without a gradient, costs nothing.
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

from xpformer.array import size
from xpformer.functional._op import Flops, Op, Pair
from xpformer.layers import Context, Layer, Observer
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
        return sum(not part.isdigit() for part in self.path.split(".")) if self.path else 0


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
        names = {r.path: _name(r) for r in shown}
        if fold:
            shown = _fold(shown, names)
        shape = _times((self.batch, *self.input_shape))
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
        for name, text in zip(("parameters", "forward", "backward", "kept"), footer, strict=True):
            table.add_column(name, text, justify="right", no_wrap=True, min_width=max(8, len(name), len(text)))
        for row, guide in zip(shown, _guides(shown), strict=True):
            name = f"[dim]{guide}[/]{escape(names[row.path])} [dim]{row.kind}[/]" if row.path else f"[b]{row.kind}[/]"
            layer, output = Text.from_markup(name), Text("" if row.shape is None else _times(row.shape))
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
    seen: set[int] = set()
    for path, layer in model.named_layers():
        own = replace(observer.flops.get(path, Cost()), parameters=_own_parameters(layer, seen), kept=kept.get(path, 0))
        idle = path in observer.idle and own == Cost()
        rows.append(Row(path, type(layer).__name__, observer.shapes.get(path), own, own, idle))
    trainable = model.count_parameters(trainable=True)
    return Summary(tuple(_totals(rows)), batch, tuple(input_shape), model.dtype, backend.spec, trainable, recompute)


class _Costs(Observer):
    """Output shapes by layer, FLOPs by layer, and the layers that returned what they were given."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.flops: dict[str, Cost] = {}
        self.idle: set[str] = set()
        self._pending: dict[tuple[str, str], list[Flops]] = {}
        self._last: Any = None
        self._backward = 0  # how many layers' backwards are running

    def enter(self, layer: Layer, direction: str) -> None:
        if direction == "forward":
            self.idle.add(layer.path)
        else:
            self._backward += 1

    def leave(self, layer: Layer, direction: str, value: Any) -> None:
        if direction == "forward":
            if value is not self._last:
                self.idle.discard(layer.path)
            if hasattr(value, "shape"):
                self.shapes[layer.path] = tuple(value.shape)
            self._last = value
        else:
            self._backward -= 1

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        flops = op.flops(*arrays, **options)
        self._pending.setdefault((path, op.name), []).append(flops)
        self.idle -= {path[:i] for i in range(len(path) + 1)}
        self._last = y
        self._add(path, Cost(backward=flops.forward) if self._backward else Cost(forward=flops.forward))

    def backward(self, path: str, op: Op, pair: Pair, dy: Any, gradients: Mapping[str, Any]) -> None:
        flops = self._pending[path, op.name].pop()
        taken = (name for name, gradient in gradients.items() if gradient is not None)
        self._add(path, Cost(backward=sum(flops.backward.get(name, 0) for name in taken)))

    def _add(self, path: str, cost: Cost) -> None:
        self.flops[path] = self.flops.get(path, Cost()) + cost


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
    seen = {_buffer(x)[0] for x in held}
    kept: dict[str, int] = {}
    for entry in ctx.tape or ():
        for x in _arrays(entry.saved):
            key, count = _buffer(x)
            if key not in seen:
                seen.add(key)
                kept[entry.path] = kept.get(entry.path, 0) + count
    return kept


def _arrays(saved: Any) -> Iterator[Any]:
    """The arrays in a saved tuple, however deep."""
    if isinstance(saved, tuple | list):
        for part in saved:
            yield from _arrays(part)
    elif isinstance(saved, Mapping):
        yield from _arrays(tuple(saved.values()))
    elif hasattr(saved, "shape") and hasattr(saved, "dtype"):
        yield saved


def _buffer(x: Any) -> tuple[int, int]:
    """The identity and the bytes of the memory that ``x`` shows all or a part of.

    NumPy and CuPy name the owner of a view ``base``, torch has a storage, array-api-strict wraps an array of NumPy;
    an array of another library is taken to own its memory.
    """
    x = getattr(x, "_array", x)
    if hasattr(x, "untyped_storage"):
        storage = x.untyped_storage()
        return storage._cdata, storage.nbytes()
    while hasattr(getattr(x, "base", None), "nbytes") and hasattr(x.base, "shape"):
        x = x.base
    return id(x), int(x.nbytes) if hasattr(x, "nbytes") else size(tuple(x.shape)) * int(x.dtype.itemsize)


def _totals(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows with ``total`` summed over the layers below."""
    totals: dict[str, Cost] = {}
    for row in rows:
        parts = row.path.split(".") if row.path else []
        for i in range(len(parts) + 1):
            above = ".".join(parts[:i])
            totals[above] = totals.get(above, Cost()) + row.own
    return (replace(row, total=totals[row.path]) for row in rows)


def _name(row: Row) -> str:
    """The part of the path below the parent layer: ``blocks.3`` or ``norm1``."""
    parts = row.path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() and len(parts) > 1 else parts[-1:])


def _fold(rows: Sequence[Row], names: dict[str, str]) -> list[Row]:
    """The rows without the blocks of a list that equal the one before; ``names`` then says ``blocks.0-5``."""
    shown: list[Row] = []
    before: list[Row] = []
    first = skip = ""  # the block that stands for its equals, ``before`` the rows in it; the block left out
    for row in rows:
        if skip and row.path.startswith(skip):
            continue
        parent, _, index = row.path.rpartition(".")
        if index.isdigit():
            inside = [replace(r, path=r.path[len(row.path) :]) for r in rows if f"{r.path}.".startswith(f"{row.path}.")]
            if first and parent == first.rpartition(".")[0] and inside == before:
                names[first] = f"{names[first].partition('-')[0]}-{index}"
                skip = f"{row.path}."
                continue
            first, before = row.path, inside
        shown.append(row)
    return shown


def _guides(rows: Sequence[Row]) -> list[str]:
    """The lines of the tree in front of each name."""
    guides: list[str] = []
    below: set[int] = set()  # the depths at which a further layer follows
    for row in reversed(rows):
        bars = "".join("│ " if level in below else "  " for level in range(1, row.depth))
        guides.append(bars + ("├ " if row.depth in below else "└ ") if row.depth else "")
        below = {level for level in below if level < row.depth} | {row.depth}
    return guides[::-1]


def _times(shape: Sequence[int]) -> str:
    """``100 x 49 x 96``."""
    return " x ".join(map(str, shape))


def _costs(cost: Cost) -> tuple[str, str, str]:
    """FLOPs forward and backward and bytes kept, as people read them."""
    return _scaled(cost.forward, 1000, ""), _scaled(cost.backward, 1000, ""), _scaled(cost.kept, 1024, "iB")


def _scaled(value: float, base: int, unit: str) -> str:
    """``13.3 G``, ``1.50 MiB``; nothing for 0."""
    if not value:
        return ""
    prefixes = ["", "k", "M", "G", "T", "P"] if base == 1000 else ["", "K", "M", "G", "T", "P"]
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    digits = 0 if not power or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {prefixes[power]}{unit}" if power else f"{value:.0f} {unit[1:]}".rstrip()
