from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import backend_or_skip
from tests.training.runs import recipe_file
from xpformer.analysis.costs import OUTSIDE
from xpformer.analysis.profile import BETWEEN, REST, Profile, Spent, profile
from xpformer.analysis.profile_tables import MARK, MARKED, ProfileView, milliseconds
from xpformer.analysis.summary import summarize
from xpformer.backend import get_backend
from xpformer.errors import ConfigError
from xpformer.training.recipe import load_recipe
from xpformer.training.session import Options, make_trainer
from xpformer.training.trainer import Trainer


@contextmanager
def bands(folder: Path, *changes: str, spec: str = "numpy", threads: int = 1) -> Iterator[Trainer]:
    """A trainer of the small recipe, with dropout, an average and two parts a share."""
    recipe = load_recipe(recipe_file(folder))
    settings = recipe.settings(None, changes)
    options = Options(spec, threads=threads if spec.startswith("numpy") else None)
    data = recipe.read_data(None, settings, 0)
    with make_trainer(recipe, settings, options, backend_or_skip(spec), data) as trainer:
        yield trainer


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Two equal blocks, two threads."""
    with bands(tmp_path_factory.mktemp("bands"), "depth=2", "drop_path=0", threads=2) as trainer:
        return profile(trainer, 4, warmup=1)


def text(found: Profile, width: int = 120, **options: object) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(ProfileView(found, **options))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("threads", [1, 2])
def test_flops_and_layers_are_those_of_the_summary(tmp_path: Path, threads: int) -> None:
    with bands(tmp_path, threads=threads) as trainer:
        found = profile(trainer, 1, warmup=0)
        summary = summarize(trainer.model, (1, 6, 6), batch=9)
    assert [(r.path, r.kind) for r in found.layers] == [(r.path, r.kind) for r in summary.rows]
    for row, expected in zip(found.layers, summary.rows, strict=True):
        assert (row.own.forward_flops, row.own.backward_flops) == (expected.own.forward, expected.own.backward)
        assert row.total.flops == expected.total.forward + expected.total.backward
    assert found.total.flops == summary.flops == sum(row.spent.flops for row in found.operations)


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable", "strict", "torch"])
def test_every_operation_appears_with_the_pair_that_ran_it(tmp_path: Path, spec: str) -> None:
    with bands(tmp_path, spec=spec) as trainer:
        found = profile(trainer, 1, warmup=0)
    rows = {(row.path, row.op): row for row in found.operations}
    assert {op for _, op in rows} >= {"linear", "attention", "layer_norm", "bias_gelu", "dropout", "cross_entropy"}
    assert {row.op for row in found.operations if row.path == OUTSIDE} == {"cross_entropy"}
    assert all(row.pair == "portable" for row in found.operations) is (spec != "numpy")
    backend = get_backend(spec)
    replaced = backend.replaced()
    assert all(row.pair in (*replaced.get(row.op, ()), "portable") for row in found.operations)
    assert rows["blocks.0.norm1", "layer_norm"].pair == (*replaced.get("layer_norm", ()), "portable")[0]
    assert rows["blocks.0.norm1", "layer_norm"].calls == 2, "of the two parts that gradients are accumulated over"
    assert found.waits is not backend.host_memory


def test_times_add_up_to_the_step(profiled: Profile) -> None:
    assert math.isclose(profiled.total.seconds + sum(profiled.rest.values()), profiled.step, rel_tol=1e-9)
    own = sum((row.own for row in profiled.layers), Spent())
    assert math.isclose(own.seconds, profiled.total.seconds, rel_tol=1e-9)
    assert own.seconds <= profiled.step
    assert min(min(r.own.forward, r.own.backward) for r in profiled.layers) >= 0
    assert min(min(r.spent.forward, r.spent.backward) for r in profiled.operations) >= 0
    assert min(profiled.rest.values()) >= 0
    operations = profiled.by_operation()
    inside = sum((row.spent.seconds for row in operations), 0.0)
    loss = sum(row.spent.seconds for row in profiled.operations if row.path == OUTSIDE)
    assert math.isclose(inside - loss, profiled.total.seconds, rel_tol=1e-9)
    assert loss <= profiled.rest["loss"]
    assert [row.spent.seconds for row in operations] == sorted((r.spent.seconds for r in operations), reverse=True)
    between = next(row for row in operations if row.op == BETWEEN)
    assert min(between.spent.forward, between.spent.backward) >= 0


def test_the_parts_of_the_step_are_those_that_the_trainer_has(tmp_path: Path, profiled: Profile) -> None:
    assert list(profiled.rest) == list(REST)
    with bands(tmp_path, "ema=0") as trainer:
        assert list(profile(trainer, 1).rest) == [name for name in REST if name != "average"]


def test_it_trains_as_training_does_and_leaves_no_observer(tmp_path: Path) -> None:
    with bands(tmp_path / "a", threads=2) as plain, bands(tmp_path / "b", threads=2) as observed:
        profile(observed, 2, warmup=1)
        for _ in range(1 + 1 + 2 * 2):
            plain.step()
        assert observed.observer is None
        assert observed.progress == plain.progress
        ours, theirs = observed.model.state(), plain.model.state()
        assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}


def test_an_error_in_a_step_leaves_no_observer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bands(tmp_path) as trainer:
        monkeypatch.setattr(trainer.batches, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            profile(trainer, 1)
        assert trainer.observer is None
        with pytest.raises(ConfigError, match="steps = 0 is less than 1"):
            profile(trainer, 0)


def test_threads_have_clocks_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier inside the first layer norm: two threads must be in it at once, and both are counted."""
    with bands(tmp_path, "accumulate=1", threads=2) as trainer:
        together, norm = threading.Barrier(2, timeout=10), trainer.model.blocks[0].norm1  # type: ignore[attr-defined]
        forward = type(norm).forward

        def meet(self, x, ctx):  # type: ignore[no-untyped-def]
            if self is norm:
                together.wait()
            return forward(self, x, ctx)

        monkeypatch.setattr(type(norm), "forward", meet)
        found = profile(trainer, 1, warmup=0)
    row = next(row for row in found.operations if row.path == "blocks.0.norm1")
    assert row.calls == 2
    assert row.spent.forward > 0


def test_bytes_counted_by_hand(tmp_path: Path) -> None:
    with bands(tmp_path, "accumulate=1", "dropout=0", "attention_dropout=0", "drop_path=0") as trainer:
        found = profile(trainer, 1, warmup=0)
    tokens, dim, hidden = 9 * 10, 8, 12
    rows = {(row.path, row.op): row.spent for row in found.operations}
    fc1 = rows["blocks.0.mlp.fc1", "linear"]
    weights, narrow, wide = dim * hidden, tokens * dim, tokens * hidden
    assert fc1.forward_bytes == 4 * (narrow + weights + wide)
    assert fc1.backward_bytes == 4 * (wide + narrow + weights + narrow + weights), "reads 3, writes 2"
    activation = rows["blocks.0.mlp.activation", "bias_gelu"]
    assert activation.forward_bytes == 4 * (wide + hidden + wide + wide), "reads x and the bias, writes y and the slope"
    assert activation.backward_bytes == 4 * (wide + wide + wide + hidden), "reads dy and the slope, writes dx and db"
    assert rows["blocks.0.attention", "split_heads"].forward_bytes == 0, "it only gives views"


def test_predicted_is_the_larger_of_two_bounds(profiled: Profile) -> None:
    bound = profiled.roofline
    assert bound.seconds(bound.flops, bound.bandwidth / 2) == bound.seconds(bound.flops / 2, bound.bandwidth) == 1.0
    for row in profiled.operations:
        s = row.spent
        expected = bound.seconds(s.forward_flops, s.forward_bytes) + bound.seconds(s.backward_flops, s.backward_bytes)
        assert s.predicted == expected
    assert profiled.floor == profiled.total.flops / bound.flops
    assert Spent().ratio == Spent().rate == 0.0


def test_to_dict_is_strict_json(profiled: Profile) -> None:
    found = json.loads(json.dumps(profiled.to_dict(), allow_nan=False))
    assert found["flops"] == profiled.total.flops
    assert found["rest"].keys() == REST.keys()
    assert [row["path"] for row in found["layers"]] == [row.path for row in profiled.layers]
    assert found["layers"][0]["total"]["seconds"] == profiled.total.seconds
    assert {"path", "op", "pair", "calls", "spent"} == found["operations"][0].keys()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_tables_fit_the_terminal(profiled: Profile, width: int) -> None:
    printed = text(profiled, width)
    assert max(map(len, printed.splitlines())) <= width
    for part in (
        "blocks.0-1 Block",
        "norm1",
        "blocked",
        "linear",
        BETWEEN,
        "optimizer",
        "observing:",
        "floor:",
        "GFLOP/s",
    ):
        assert part in printed
    assert ("predicted  ratio" in printed) is (width > 80)
    assert f"{milliseconds(profiled.step)} ms a step with the clock" in printed


def test_the_lines_furthest_above_the_prediction_are_marked(profiled: Profile) -> None:
    slow = profiled.operations[3]
    spent = replace(slow.spent, forward=1000 * profiled.step)
    operations = tuple(replace(row, spent=spent) if row is slow else row for row in profiled.operations)
    table = text(replace(profiled, operations=operations)).partition("by operation")[2].partition("whole step")[0]
    marked = [line for line in table.splitlines() if line.endswith(MARK)]
    assert marked[0].startswith(f"{slow.op} {slow.pair}")
    assert len(marked) <= MARKED


def test_depth_and_folding(profiled: Profile) -> None:
    layers = text(profiled, 200, depth=1).partition("by operation")[0]
    assert "blocks.0-1" in layers
    assert "norm1" not in layers
    assert text(profiled, 200, fold=False).count("norm1 LayerNorm") == 2


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, "0.000"), (4.2e-5, "0.042"), (0.00731, "7.31"), (0.0999, "99.9"), (0.12, "120")])  # fmt: skip  # noqa: E501
def test_milliseconds(seconds: float, expected: str) -> None:
    assert milliseconds(seconds) == expected


def test_the_clock_of_a_device_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bands(tmp_path, spec="torch") as trainer:
        waited: list[int] = []
        monkeypatch.setattr(type(trainer.backend), "synchronize", lambda self: waited.append(1))
        found = profile(trainer, 1, warmup=0)
    assert found.waits
    assert len(waited) > 4 * sum(row.calls for row in found.operations)
    assert "the clock waits for the device" in text(found).replace("\n", " ")
