"""The Vision Transformer: its sizes, its gradients against torch's, its training, its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xpformer import optim
from xpformer.analysis.measure import BACKENDS, TORCH, equal, magnitude, same_bits
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError, ShapeError
from xpformer.functional import cross_entropy
from xpformer.layers import Context, Observer
from xpformer.models.vit import PRESETS, ViT, ViTConfig
from xpformer.rng import Rng, host_generator

GOLDEN = {
    # the published sizes, from the checkpoints of github.com/google-research/vision_transformer
    "ti16": 5_717_416,
    "s16": 22_050_664,
    "s32": 22_878_952,
    "b16": 86_567_656,
    "b32": 88_224_232,
    "l16": 304_326_632,
    "l32": 306_535_400,
    "h14": 632_045_800,
    # ours
    "seed": 847_498,
    "small": 198_474,
    "quick": 165_002,
    "hf": 139_018,
    "digits": 120_138,
    "tiny": 1_235,
}


def test_every_preset_has_a_golden_count() -> None:
    assert GOLDEN.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts(preset: str) -> None:
    assert ViT(PRESETS[preset]).count_parameters() == GOLDEN[preset]


def test_small_is_small() -> None:
    assert GOLDEN["small"] <= 220_000


SMALL = {"image_size": 6, "patch_size": 2, "channels": 2, "dim": 8, "depth": 2, "heads": 2, "classes": 3}
STEM = {"embedding": "stem", "stem_channels": (4, 5), "stem_strides": (2, 1, 2), "image_size": 9}
OPTIONS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "mean": {"pool": "mean"},
    "flatten": {"pool": "flatten"},
    "sincos1d": {"positions": "sincos1d"},
    "sincos1d, mean": {"positions": "sincos1d", "pool": "mean"},
    "sincos2d": {"positions": "sincos2d"},
    "sincos2d, flatten": {"positions": "sincos2d", "pool": "flatten"},
    "no positions": {"positions": "none"},
    "patch norm": {"patch_norm": True},
    "convolution": {"embedding": "conv"},
    "overlapping": {"embedding": "conv", "patch_size": 4, "patch_stride": 1},
    "overlapping, sincos2d": {"embedding": "conv", "patch_size": 3, "patch_stride": 2, "positions": "sincos2d"},
    "stem": STEM,
    "stem, silu, sincos2d": {**STEM, "stem_activation": "silu", "positions": "sincos2d", "pool": "mean"},
    "two convolutions": {**STEM, "stem_channels": (4,), "stem_strides": (3, 1), "patch_norm": True},
    "one convolution": {**STEM, "stem_channels": (), "stem_strides": (2,), "stem_activation": "tanh"},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "tanh": {"activation": "tanh"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "heads by block": {"heads": (1, 4)},
    "eight heads": {"heads": 8},
    "no qkv bias": {"qkv_bias": False},
    "no projection": {"attention_projection": False},
    "large eps": {"norm_eps": 0.1},
    "hidden head": {"head_hidden": 5},
    "hidden head, relu": {"head_hidden": 5, "head_activation": "relu"},
    "deep": {"depth": 4, "mlp_ratio": 3.0},
    "one block": {"depth": 1, "dim": 12, "heads": 3},
    "as the reference": {
        "patch_norm": True,
        "positions": "sincos1d",
        "pool": "flatten",
        "mlp_ratio": 2.0,
        "attention_projection": False,
        "head_hidden": 7,
        "head_activation": "relu",
        "init": "uniform",
    },
}


def build(backend: Backend | str, seed: int = 0, **changes: Any) -> ViT:
    """A small model in float64 with random weights, biases and norms."""
    model = ViT(ViTConfig(**{**SMALL, **changes})).to(backend, "float64")
    generator = host_generator(seed, "weights")
    values = {n: 0.3 * generator.standard_normal(p.shape) for n, p in model.named_parameters().items()}
    values |= {n: a + 1.0 for n, a in values.items() if n.endswith("weight") and a.ndim == 1 and "norm" in n}
    model.load_state(values)
    return model


def batch(model: ViT, seed: int = 0, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    c, generator = model.config, host_generator(seed, "batch")
    images = generator.standard_normal((count, c.channels, c.image_size, c.image_size))
    return images, generator.integers(0, c.classes, count)


def one_pass(model: ViT, images: np.ndarray, labels: np.ndarray, rng: Rng | None = None) -> dict[str, Any]:
    """Logits, loss and the gradients of all parameters and of the images."""
    backend = model.backend
    grads = model.gradients()
    ctx = Context(backend, rng=rng, grads=grads, input_gradient=True)
    logits = model.forward(backend.asarray(images, model.dtype), ctx)
    loss = ctx.forward(cross_entropy, logits, backend.asarray(labels), label_smoothing=0.1)
    dlogits = ctx.backward(cross_entropy, backend.asarray(np.asarray(1.0, model.dtype)))
    dimages = model.backward(dlogits, ctx)
    assert ctx.tape == []
    return {
        "logits": backend.to_numpy(logits),
        "loss": backend.to_numpy(loss),
        "gradients": {**grads.to_host(), "images": backend.to_numpy(dimages)},
    }


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
@pytest.mark.parametrize("name", OPTIONS)
def test_logits_and_all_gradients_are_torchs(spec: str, name: str) -> None:
    torch = pytest.importorskip("torch")
    from tests.models import torch_vit

    model = build(spec, **OPTIONS[name])
    images, labels = batch(model)
    ours = one_pass(model, images, labels)
    p = torch_vit.parameters(model.state())
    p["images"] = torch.tensor(images, requires_grad=True)
    logits = torch_vit.forward(p, model.config, p["images"])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), label_smoothing=0.1)
    theirs = torch_vit.gradients(loss, p)
    assert ours["gradients"].keys() == theirs.keys()
    scale = max(map(magnitude, theirs.values()))
    measures = [equal(n, ours["gradients"][n], g, TORCH, scale=scale) for n, g in theirs.items()]
    measures += [equal("logits", ours["logits"], logits.detach().numpy(), TORCH)]
    measures += [equal("loss", ours["loss"], loss.detach().numpy(), TORCH)]
    assert [str(m) for m in measures if not m.ok] == []


def test_the_gradient_of_a_keys_bias_is_zero() -> None:
    """A constant added to all keys of a query adds the same number to its scores: softmax does not see it."""
    model = build("numpy:portable")
    gradients = one_pass(model, *batch(model))["gradients"]
    for block in range(2):
        q, k, v = np.split(gradients[f"blocks.{block}.attention.qkv.bias"], 3)
        assert magnitude(k) < 1e-16
        assert min(magnitude(q), magnitude(v)) > 1e-5


DROPPING = {"dropout": 0.2, "attention_dropout": 0.3, "drop_path": 0.4, "depth": 3}


@pytest.mark.parametrize("name", ["tiny", "stem", "as the reference", "dropping"])
def test_every_backend_gives_the_same_gradients(backend: Backend, portable: Backend, name: str) -> None:
    options = {**OPTIONS, "dropping": DROPPING}[name]
    models = build(backend, **options), build(portable, **options)
    ours, theirs = (one_pass(m, *batch(m), rng=Rng(7, 3)) for m in models)
    scale = max(map(magnitude, theirs["gradients"].values()))
    measures = [equal(n, ours["gradients"][n], g, BACKENDS, scale=scale) for n, g in theirs["gradients"].items()]
    measures += [equal(n, ours[n], theirs[n], BACKENDS) for n in ("logits", "loss")]
    assert [str(m) for m in measures if not m.ok] == []


def test_shares_of_a_batch_add_up_to_the_whole(portable: Backend) -> None:
    model = build(portable, **DROPPING)
    images, labels = batch(model, count=7)
    labels[2] = -100
    whole, shares = model.gradients(), model.gradients()

    def share(grads: Any, start: int, stop: int) -> float:
        ctx = Context(portable, rng=Rng(7, 3, first_sample=start), grads=grads)
        logits = model.forward(images[start:stop], ctx)
        loss = ctx.forward(cross_entropy, logits, labels[start:stop], denominator=6)
        model.backward(ctx.backward(cross_entropy, np.asarray(1.0)), ctx)
        return float(loss)

    total = share(whole, 0, 7)
    parts = sum(share(shares, a, b) for a, b in ((0, 1), (1, 3), (3, 7)))
    scale = max(map(magnitude, whole.to_host().values()))
    measures = [equal(n, shares.to_host()[n], g, BACKENDS, scale=scale) for n, g in whole.to_host().items()]
    assert [str(m) for m in measures if not m.ok] == []
    assert parts == pytest.approx(total, rel=1e-12)


OPTIMIZERS: dict[str, Any] = {
    "adamw": (lambda store: optim.AdamW(store, weight_decay=0.05), "AdamW"),
    "adam": (lambda store: optim.Adam(store, weight_decay=0.05), "Adam"),
    "sgd": (lambda store: optim.SGD(store, momentum=0.9, weight_decay=0.05), "SGD"),
}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
def test_fifty_training_steps_give_torchs_losses(spec: str, kind: str) -> None:
    torch = pytest.importorskip("torch")
    from tests.models import torch_vit

    steps, lr = 50, 0.003 if kind == "adamw" else 0.02
    model = build(spec, patch_norm=True, head_hidden=5)
    backend, grads = model.backend, model.gradients()
    make, their_kind = OPTIMIZERS[kind]
    optimizer = make(model.store)
    p = torch_vit.parameters(model.state())
    decay = [t for n, t in p.items() if model.named_parameters()[n].decay]
    rest = [t for n, t in p.items() if not model.named_parameters()[n].decay]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    extra = {"momentum": 0.9} if kind == "sgd" else {}
    theirs = getattr(torch.optim, their_kind)(groups, lr=lr, **extra)
    ours_losses, their_losses = [], []
    for step in range(1, steps + 1):
        images, labels = batch(model, seed=step % 4)
        ctx = Context(backend, grads=grads)
        grads.reset()
        logits = model.forward(backend.asarray(images), ctx)
        loss = ctx.forward(cross_entropy, logits, backend.asarray(labels))
        model.backward(ctx.backward(cross_entropy, backend.asarray(np.asarray(1.0))), ctx)
        segments = grads.finish()
        norm = optim.global_norm(model.store, segments)
        optimizer.step(segments, lr=lr, step=step, scale=optim.clip_scale(norm, 1.0))
        ours_losses.append(float(loss))
        theirs.zero_grad()
        torch_loss = torch.nn.functional.cross_entropy(
            torch_vit.forward(p, model.config, torch.tensor(images)), torch.tensor(labels)
        )
        torch_loss.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        theirs.step()
        their_losses.append(torch_loss.item())
    assert ours_losses[-1] < 0.9 * ours_losses[0]
    assert np.max(np.abs(np.subtract(ours_losses, their_losses))) < TORCH * max(their_losses)
    for name, value in model.state().items():
        reference = p[name].detach().numpy()
        assert equal(name, value, reference, 1e-8, scale=max(magnitude(reference), lr * steps)).ok


def training_step(model: ViT, images: Any, labels: Any) -> tuple[Any, list[Any]]:
    """A whole step, nothing read on the host: loss, gradients, norm, clipping, finite flag, update, average."""
    backend = model.backend
    xp, grads = backend.xp, model.gradients()
    optimizer, ema = optim.AdamW(model.store, weight_decay=0.1), optim.EMA(model.store, 0.99)
    loss = None
    for step in (1, 2):
        grads.reset()
        ctx = Context(backend, rng=Rng(0, step), grads=grads)
        logits = model.forward(images, ctx)
        loss = ctx.forward(cross_entropy, logits, labels, label_smoothing=0.1)
        one = xp.ones((), dtype=loss.dtype, device=backend.device)
        model.backward(ctx.backward(cross_entropy, one), ctx)
        segments = grads.finish()
        norm = optim.global_norm(model.store, segments)
        optimizer.step(
            segments, lr=1e-3, step=step, scale=optim.clip_scale(norm, 0.1), finite=xp.isfinite(norm), parts=2
        )
        ema.update(step)
    return loss, [s.data for s in model.store.segments] + ema.segments


@pytest.mark.parametrize("name", ["tiny", "stem", "dropping"])
def test_a_training_step_on_torchs_meta_device_asks_for_no_value(name: str) -> None:
    pytest.importorskip("torch")
    backend = get_backend("torch:meta")
    model = ViT(ViTConfig(**{**SMALL, **{**OPTIONS, "dropping": DROPPING}[name]})).to(backend)
    xp = backend.xp
    images = xp.zeros((5, 2, model.config.image_size, model.config.image_size), dtype=xp.float32, device="meta")
    labels = xp.zeros((5,), dtype=xp.int64, device="meta")
    loss, segments = training_step(model, images, labels)
    assert all(a.device.type == "meta" and a.dtype == xp.float32 for a in (loss, *segments))


@pytest.mark.parametrize("name", ["tiny", "stem", "dropping"])
def test_a_training_step_is_the_same_on_every_backend(backend: Backend, portable: Backend, name: str) -> None:
    found = []
    for each in (backend, portable):
        model = build(each, **{**OPTIONS, "dropping": DROPPING}[name])
        images, labels = batch(model)
        loss, segments = training_step(model, each.asarray(images), each.asarray(labels))
        found.append([each.to_numpy(a) for a in (loss, *segments)])
    assert [str(m) for m in (equal("step", *pair, 1e-10) for pair in zip(*found, strict=True)) if not m.ok] == []


def test_float32_stays_float32(backend: Backend) -> None:
    dtypes: set[str] = set()

    class Dtypes(Observer):
        def forward(self, path: str, op: Any, pair: Any, arrays: Any, options: Any, y: Any, saved: Any) -> None:
            for part in y if isinstance(y, tuple) else (y,):
                dtypes.add(str(part.dtype).rpartition(".")[2])

        def backward(self, path: str, op: Any, pair: Any, dy: Any, gradients: Any) -> None:
            dtypes.update(str(g.dtype).rpartition(".")[2] for g in gradients.values() if g is not None)

    for options in ({}, {**STEM, **DROPPING}, OPTIONS["as the reference"]):
        model = ViT(ViTConfig(**{**SMALL, **options})).to(backend)
        grads = model.gradients()
        ctx = Context(backend, rng=Rng(0, 1), grads=grads, observer=Dtypes(), input_gradient=True)
        images, labels = batch(model)
        logits = model.forward(backend.asarray(images, "float32"), ctx)
        ctx.forward(cross_entropy, logits, backend.asarray(labels))
        dimages = model.backward(ctx.backward(cross_entropy, backend.asarray(np.float32(1.0))), ctx)
        assert backend.to_numpy(dimages).dtype == np.float32
        assert {a.dtype.name for a in grads.to_host().values()} == {"float32"}
    assert dtypes == {"float32"}


def test_inference_of_an_empty_batch(backend: Backend) -> None:
    model = build(backend)
    assert tuple(model(backend.zeros((0, 2, 6, 6), "float64")).shape) == (0, 3)


def test_the_same_seed_gives_the_same_model(portable: Backend) -> None:
    states = [ViT(ViTConfig.preset("tiny"), seed=s).to(portable).state() for s in (3, 3, 4)]
    assert all(same_bits(n, a, states[1][n]).ok for n, a in states[0].items())
    assert not all(same_bits(n, a, states[2][n]).ok for n, a in states[0].items())


def test_a_new_model_predicts_nothing(portable: Backend, rng: np.random.Generator) -> None:
    """The head starts at zero, so the first loss is log K."""
    assert not ViT(ViTConfig.preset("tiny")).to(portable, "float64")(rng.standard_normal((2, 1, 6, 6))).any()


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "image_size": ({"image_size": 0}, "image_size = 0 is not positive"),
    "channels": ({"channels": -1}, "channels = -1 is not positive"),
    "classes": ({"classes": 0}, "classes = 0 is not positive"),
    "patch_size": ({"patch_size": 0}, "patch_size = 0 is not positive"),
    "dim": ({"dim": 0}, "dim = 0 is not positive"),
    "depth": ({"depth": 0}, "depth = 0 is not positive"),
    "embedding": ({"embedding": "flaten"}, "embedding = 'flaten' is unknown; did you mean 'flatten'?"),
    "positions": ({"positions": "learnt"}, "positions = 'learnt' is unknown; did you mean 'learned'?"),
    "pool": ({"pool": "max"}, "pool = 'max' is unknown; "),
    "activation": ({"activation": "gelo"}, "activation = 'gelo' is unknown; did you mean 'gelu'?"),
    "stem_activation": ({"stem_activation": "x"}, "stem_activation = 'x' is unknown; known: gelu"),
    "head_activation": ({"head_activation": "x"}, "head_activation = 'x' is unknown; known: gelu"),
    "init": ({"init": "vut"}, "init = 'vut' is unknown; did you mean 'vit'?"),
    "dropout": ({"dropout": 1.0}, "dropout = 1.0 is outside 0 <= rate < 1"),
    "attention_dropout": ({"attention_dropout": -0.1}, "attention_dropout = -0.1 is outside 0 <= rate < 1"),
    "drop_path": ({"drop_path": 2.0}, "drop_path = 2.0 is outside 0 <= rate < 1"),
    "patch_stride": ({"patch_stride": -1}, "patch_stride = -1 is negative"),
    "head_hidden": ({"head_hidden": -1}, "head_hidden = -1 is negative"),
    "mlp_ratio": ({"mlp_ratio": 0.0}, "mlp_ratio = 0.0 is not positive"),
    "tiny mlp_ratio": ({"mlp_ratio": 0.5 / 64}, "mlp_ratio = 0.0078125 of dim = 64 is no width of a hidden layer"),
    "mlp_ratio without end": ({"mlp_ratio": float("inf")}, "mlp_ratio = inf is not a finite number"),
    "norm_eps": ({"norm_eps": float("nan")}, "norm_eps = nan is not positive"),
    "heads": ({"heads": 5}, "heads = 5 does not divide dim = 64"),
    "no heads": ({"heads": 0}, "heads = 0 does not divide dim = 64"),
    "heads by block": ({"heads": (4, 4)}, "heads = (4, 4) names 2 blocks, depth = 3"),
    "patches": ({"patch_size": 5}, "patch_size = 5 does not divide image_size = 28"),
    "large patch": (
        {"embedding": "conv", "patch_size": 29},
        "patch_size = 29 is larger than image_size = 28",
    ),
    "stem": (
        {"embedding": "stem", "stem_strides": (2,)},
        "stem_strides = (2,) names 1 convolutions, stem_channels = (16,) and the last one make 2",
    ),
    "stem stride": ({"embedding": "stem", "stem_strides": (0, 2)}, "stem_channels and stem_strides must be positive"),
    "sincos2d": (
        {"positions": "sincos2d", "dim": 6, "heads": 2},
        "positions = 'sincos2d' needs dim to be a multiple of 4, got 6",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_config_that_cannot_be_says_why(name: str) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(ConfigError) as error:
        ViTConfig(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_presets_and_options() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'smal'; did you mean 'small'"):
        ViTConfig.preset("smal")
    with pytest.raises(ConfigError, match="unknown ViT option 'detph'; did you mean 'depth'"):
        ViTConfig.preset("small", detph=3)
    assert ViTConfig.preset("small", depth=3).depth == 3


def test_images_of_another_shape(portable: Backend) -> None:
    model = build(portable)
    with pytest.raises(ShapeError, match=r"ViT: images have shape \(5, 1, 6, 6\), expected \(B, 2, 6, 6\)"):
        model(np.zeros((5, 1, 6, 6)))


def test_images_of_another_dtype_are_refused():
    model = ViT(ViTConfig.preset("tiny")).to("numpy")
    with pytest.raises(ShapeError, match="images are float64, the weights float32"):
        model(np.zeros((1, 1, 6, 6)))
