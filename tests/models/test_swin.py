"""Swin: its sizes, its grids, its gradients on every backend, its training in threads, its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.runs import begin, differences, outcome
from xpformer import initializers as init
from xpformer.analysis.measure import BACKENDS, equal, magnitude, same_bits
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError, ShapeError
from xpformer.functional import cross_entropy
from xpformer.layers import Context
from xpformer.models.swin import PRESETS, Swin, SwinConfig
from xpformer.models.tuning import Tuning, carry_over, check_change, tune
from xpformer.rng import host_generator
from xpformer.training.session import resume

GOLDEN = {
    # the published sizes, as transformers counts them
    "t": 28_288_354,
    "s": 49_606_258,
    "b": 87_768_224,
    "l": 196_532_476,
    # ours
    "mnist": 210_844,
    "mnist-stem": 229_276,
    "small-image": 2_643_758,
    "tiny": 5_839,
}


def build(backend: Backend | str = "numpy", dtype: str = "float64", **changes: Any) -> Swin:
    """A tiny model with random weights."""
    model = Swin(SwinConfig.preset("tiny", **changes)).to(backend, dtype)
    draw = host_generator(0, "weights")
    model.load_state({n: 0.3 * draw.standard_normal(p.shape) for n, p in model.named_parameters().items()})
    return model


def images(config: SwinConfig, count: int = 3) -> np.ndarray:
    return host_generator(0, "images").standard_normal((count, config.channels, config.image_size, config.image_size))


def test_golden_parameter_counts() -> None:
    assert PRESETS.keys() == GOLDEN.keys()
    assert {name: Swin(config).count_parameters() for name, config in PRESETS.items()} == GOLDEN


@pytest.mark.parametrize(("name", "dim", "depth"), [("t", 96, 6), ("s", 96, 18), ("b", 128, 18), ("l", 192, 18)])
def test_published_sizes_are_those_of_transformers(name: str, dim: int, depth: int) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    heads = [dim // 32 * 2**stage for stage in range(4)]
    config = transformers.SwinConfig(embed_dim=dim, depths=[2, 2, depth, 2], num_heads=heads, num_labels=1000)
    with torch.device("meta"):
        model = transformers.SwinForImageClassification(config)
    assert sum(p.numel() for p in model.parameters()) == GOLDEN[name]


def test_grids_and_windows() -> None:
    config = SwinConfig.preset("tiny", image_size=27, window=3, depths=(2, 2, 2, 2), heads=(1, 1, 1, 1))
    assert config.grids == ((14, 14), (7, 7), (4, 4), (2, 2))
    assert config.dims == (8, 16, 32, 64)
    cuts = [(config.windows(s, b).window[0], config.windows(s, b).shift[0]) for s in range(4) for b in range(2)]
    assert cuts == [(3, 0), (3, 1), (3, 0), (3, 1), (3, 0), (3, 1), (2, 0), (2, 0)]


@pytest.mark.parametrize("name", ["tiny", "mnist", "small-image"])
def test_presets_run(name: str) -> None:
    model = Swin(SwinConfig.preset(name)).to("numpy")
    logits = model(images(model.config, 2).astype("float32"))
    assert logits.shape == (2, model.config.classes)
    states = model.features(images(model.config, 2).astype("float32"))
    assert [s.shape[-1] for s in states] == [model.config.dim, *model.config.dims[1:], model.config.dims[-1]]


def gradients(model: Swin, **options: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of all parameters and of the images."""
    backend, x = model.backend, images(model.config)
    grads = model.gradients()
    ctx = Context(backend, grads=grads, input_gradient=True, **options)
    logits = model.forward(backend.asarray(x), ctx)
    ctx.forward(cross_entropy, logits, backend.asarray(np.arange(3)))
    dx = model.backward(ctx.backward(cross_entropy, backend.asarray(np.asarray(1.0))), ctx)
    return grads.to_host(), backend.to_numpy(dx)


@pytest.mark.parametrize(
    "changes", [{}, {"window": 4, "positions": "learned", "qkv_bias": False}], ids=["tiny", "grid"]
)
def test_backends_agree(backend: Backend, changes: dict[str, Any]) -> None:
    expected, dx = gradients(build(get_backend("numpy"), **changes))
    model = build(backend, **changes)
    found, other = gradients(model)
    scale = max(map(magnitude, expected.values()))
    assert equal("dx", other, dx, BACKENDS).ok
    assert all(equal(n, found[n], g, BACKENDS, scale=scale).ok for n, g in expected.items())
    again, _ = gradients(model, recompute=True)
    assert all(same_bits(n, again[n], g).ok for n, g in found.items())


# ---- training -------------------------------------------------------------------------------------------------------


RECIPE = '''"""Three classes of 9x9 images, a bright band each."""

import numpy as np

from xpformer.data import Augmentation, ImageData
from xpformer.data.images import ImageSet
from xpformer.models.swin import SwinConfig
from xpformer.rng import host_generator
from xpformer.training import DataConfig, Recipe, TrainConfig
from xpformer.training.recipe import SwinSettings, SwinTask


def images(count, stream):
    draw = host_generator(5, stream)
    labels = draw.integers(0, 3, count)
    pixels = draw.integers(0, 160, (count, 2, 9, 9))
    for image, label in zip(pixels, labels, strict=True):
        image[:, 3 * label : 3 * label + 3] += 60
    return ImageSet(pixels.astype(np.uint8), labels.astype(np.int64), ("top", "middle", "bottom"))


def load(folder, validation, seed):
    return ImageData("bands", images(48, "a"), images(validation, "b"), images(9, "c"), (0.4, 0.4), (0.2, 0.2))


def recipe():
    model = SwinConfig.preset("tiny", dropout=0.1, attention_dropout=0.1, drop_path=0.2)
    train = TrainConfig(
        steps=12, batch_size=9, lr=3e-3, warmup_steps=5, weight_decay=0.05, clip=1.0, ema=0.9, evaluate_every=6,
        checkpoint_every=5, accumulate=2,
    )
    settings = SwinSettings(model, train, Augmentation(shift=1, rotate=5, erase=0.2), DataConfig(12))
    return Recipe("bands", "bands", {"tiny": settings}, "tiny", load, task=SwinTask())
'''


@pytest.mark.usefixtures("no_fsync")
def test_a_run_is_resumed_to_the_same_bits_and_recomputed_to_them(tmp_path: Path) -> None:
    whole = begin(tmp_path, text=RECIPE, name="whole")
    assert whole.train() == "finished"
    part = begin(tmp_path, "train.recompute=true", text=RECIPE, name="part")
    for stop in (0, 4, 6):
        part.train(max_steps=stop)
        part, notes = resume(part.run.path)
        assert not notes
    assert part.train() == "finished"
    assert not differences(outcome(part.run), outcome(whole.run))


@pytest.mark.usefixtures("no_fsync")
def test_threads_give_the_whole(tmp_path: Path) -> None:
    """Losses and weights in float64 but for rounding, with dropout and stochastic depth on both branches."""
    found = []
    for threads in (1, 2):
        session = begin(tmp_path, text=RECIPE, name=str(threads), threads=threads, dtype="float64")
        session.train()
        found.append(session.trainer.model.state())
    for name, value in found[0].items():
        if not name.endswith("qkv.bias"):  # a key's gradient is rounding, which Adam divides by its own size
            assert equal(name, found[1][name], value, BACKENDS, scale=max(magnitude(value), 12 * 3e-3)).ok, name


def test_stochastic_depth_drops_both_branches_or_attention_alone() -> None:
    for branches, rate in (("both", 0.3), ("attention", 0.0)):
        model = Swin(SwinConfig.preset("tiny", drop_path=0.3, drop_path_on=branches))
        last, first = model.stages[-1].blocks[-1], model.stages[0].blocks[0]
        assert (last.drop_path1.rate, last.drop_path2.rate) == (0.3, rate)
        assert first.drop_path1.rate == 0.0


# ---- fine-tuning ----------------------------------------------------------------------------------------------------


def test_layers_learn_at_their_rates() -> None:
    model = build()
    tune(model, Tuning(lr_decay=0.5))
    rates = {n: p.lr_scale for n, p in model.named_parameters().items()}
    assert {rates[f"{n}.weight"] for n in ("embedding.projection", "patch_norm")} == {0.5**5}
    heights = [rates[f"stages.{s}.blocks.{b}.attention.table"] for s in (0, 1) for b in (0, 1)]
    assert heights == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert rates["stages.0.merging.reduction.weight"] == rates["stages.0.merging.norm.bias"] == 0.5**3
    assert rates["norm.weight"] == rates["head.output.weight"] == 1.0
    with pytest.raises(
        ConfigError, match=r"freeze: 'stage' matches no parameter; known: .* stages\.\*\.blocks\.\*\.norm1, "
    ):
        tune(model, Tuning(freeze=("stage",)))


def test_frozen_stages_cost_no_backward() -> None:
    model = build()
    tune(model, Tuning(freeze=("embedding", "patch_norm", "stages.0")))
    grads = model.gradients()
    ctx = Context(model.backend, grads=grads)
    logits = model.forward(images(model.config), ctx)
    assert not [e for e in ctx.tape or () if e.path.startswith(("embedding", "patch_norm", "stages.0"))]
    assert model.backward(np.ones_like(logits), ctx) is None
    assert {n.partition(".blocks")[0].partition(".merging")[0] for n in grads.to_host()} == {
        *("stages.1", "norm.weight", "norm.bias", "head.output.weight", "head.output.bias")
    }


def test_a_swin_for_other_images() -> None:
    old = build(image_size=8, positions="learned", window=3)  # grids 4 and 2, windows 3 and 2
    new = SwinConfig.preset("tiny", image_size=20, positions="learned", window=4, classes=5)
    values, said = carry_over(old.state(), old.config, Swin(new).to("numpy", "float64").state(), new)
    assert said == [
        "positions interpolated from 4 x 4 to 10 x 10 patches",
        "stage 0: tables for windows of 3 made such for windows of 4",
        "stage 1: tables for windows of 2 made such for windows of 4",
        "a new head of 5 classes in place of the old one of 3",
    ]
    Swin(new).to("numpy", "float64").load_state(values)
    with pytest.raises(
        ConfigError, match=r"model\.depths = \(2, 1\): the weights are for \(2, 2\); what may change is"
    ):
        check_change(old.config, SwinConfig.preset("tiny", depths=(2, 1)))


def test_tables_of_other_windows() -> None:
    table = np.arange(49.0)[:, None] * [1.0, 2.0]  # of windows of 4
    assert init.resize_distances(table, 4, 2)[:, 0].tolist() == [16, 17, 18, 23, 24, 25, 30, 31, 32]
    assert np.array_equal(init.resize_distances(table, 4, 4), table)
    larger = init.resize_distances(table, 4, 5)
    assert np.array_equal(larger, init.resize_positions(table, (7, 7), (9, 9), token=False))
    assert larger[40].tolist() == pytest.approx([24.0, 48.0])  # no distance


# ---- errors ---------------------------------------------------------------------------------------------------------


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"image_size": 0}, "image_size = 0 is not positive"),
    ({"channels": 0}, "channels = 0 is not positive"),
    ({"classes": 0}, "classes = 0 is not positive"),
    ({"patch_size": 0}, "patch_size = 0 is not positive"),
    ({"dim": -1}, "dim = -1 is not positive"),
    ({"depths": (2, 0)}, "depths = (2, 0) is not positive"),
    ({"heads": (0, 2)}, "heads = (0, 2) is not positive"),
    ({"window": 0}, "window = 0 is not positive"),
    ({"activation": "gelo"}, "activation = 'gelo' is unknown; did you mean 'gelu'?"),
    ({"positions": "learnt"}, "positions = 'learnt' is unknown; did you mean 'learned'?"),
    ({"drop_path_on": "mlp"}, "drop_path_on = 'mlp' is unknown; known: attention, both"),
    ({"init": "swim"}, "init = 'swim' is unknown; did you mean 'swin'?"),
    ({"dropout": 1.0}, "dropout = 1.0 is outside 0 <= rate < 1"),
    ({"attention_dropout": -0.1}, "attention_dropout = -0.1 is outside 0 <= rate < 1"),
    ({"drop_path": 2.0}, "drop_path = 2.0 is outside 0 <= rate < 1"),
    ({"mlp_ratio": 0.0}, "mlp_ratio = 0.0 is not positive"),
    ({"norm_eps": 0.0}, "norm_eps = 0.0 is not positive"),
    ({"depths": (), "heads": ()}, "depths = () has 0 numbers, heads = () 0; give as many, and 1 to 16"),
    ({"heads": (2,)}, "depths = (2, 2) has 2 numbers, heads = (2,) 1; give as many, and 1 to 16"),
    ({"heads": (2, 5)}, "heads = 5 does not divide 16, the width of its stage, from dim = 8"),
    ({"mlp_ratio": 0.1}, "mlp_ratio = 0.1 leaves the MLP no hidden unit of dim = 8"),
    (
        {"image_size": 32768, "patch_size": 1},
        "image_size = 32768 and window = 2: a grid of 32768 x 32768 has 4,294,967,296 pairs of tokens",
    ),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_a_config_that_cannot_be_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SwinConfig.preset("tiny", **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_presets_and_options() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'tine'; did you mean 'tiny'"):
        SwinConfig.preset("tine")
    with pytest.raises(ConfigError, match="unknown Swin option 'depth'; did you mean 'depths'"):
        SwinConfig.preset("tiny", depth=3)


def test_images_that_cannot_be() -> None:
    model = build()
    with pytest.raises(ShapeError, match=r"Swin: images have shape \(3, 2, 8, 8\), expected \(B, 2, 9, 9\)"):
        model(np.zeros((3, 2, 8, 8)))
    with pytest.raises(ShapeError, match="Swin: images are float32, the weights float64; convert one of them"):
        model(np.zeros((3, 2, 9, 9), np.float32))
