"""Fine-tuning: what learns, how fast, by how much work, and from which weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.models import test_gpt, test_vit
from xpformer import optim
from xpformer.analysis.measure import BACKENDS, TORCH, equal, magnitude, same_bits
from xpformer.analysis.summary import summarize
from xpformer.array import HostArray
from xpformer.backend import Backend
from xpformer.errors import ConfigError
from xpformer.functional import cross_entropy
from xpformer.initializers import resize_positions
from xpformer.layers import Context, FusedLoRA, Layer, LoRA
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.tuning import HEAD, Tuning, carry_over, check_change, merged_state, tune
from xpformer.models.vit import ViT, ViTConfig
from xpformer.rng import host_generator

STEPS, LR, DECAY = 5, 0.01, 0.1
WAYS = {
    "all": Tuning(),
    "frozen": Tuning(freeze=("embedding", "positions", "blocks.0", "blocks.1.attention.*.bias")),
    "the end": Tuning(freeze=("*", "!norm")),
    "in between": Tuning(freeze=("blocks.1", "norm.*")),
    "decay": Tuning(lr_decay=0.7),
    "lora": Tuning(lora=("*.qkv", "blocks.1.mlp.*"), rank=3, alpha=5.0),
    "lora everywhere": Tuning(lora=("*",), rank=2),
    "lora of query and value": Tuning(lora=("*.q", "*.v"), rank=2, alpha=3.0),
    "lora and norms": Tuning(lora=("*.qkv",), rank=2, freeze=("!*.norm?",), lr_decay=0.5),
}


def tuned(backend: Backend | str, kind: str, how: Tuning) -> Layer:
    """A small model with random weights, those of its LoRA too."""
    config: Any = ViTConfig(**test_vit.SMALL) if kind == "vit" else GPTConfig.preset("tiny", activation="gelu_tanh")
    model = ViT(config) if kind == "vit" else GPT(config)
    tune(model, how, new=(HEAD,) if kind == "vit" else ())
    model.to(backend, "float64")
    draw = host_generator(0, "weights")
    model.load_state({n: 0.3 * draw.standard_normal(p.shape) for n, p in model.named_parameters().items()})
    return model


def batch(model: Any, step: int) -> tuple[HostArray, HostArray]:
    if isinstance(model, ViT):
        return test_vit.batch(model, seed=step)
    ids = host_generator(step, "ids").integers(0, model.config.vocabulary, (3, model.config.context + 1))
    return ids[:, :-1], ids[:, 1:]


def one_pass(model: Any, step: int, **options: Any) -> tuple[float, Any]:
    """The loss, and the gradients in their slots."""
    backend, (x, y) = model.backend, batch(model, step)
    grads = model.gradients()
    ctx = Context(backend, grads=grads, **options)
    logits = model.forward(backend.asarray(x), ctx)
    loss = ctx.forward(cross_entropy, logits, backend.asarray(y))
    model.backward(ctx.backward(cross_entropy, backend.asarray(np.asarray(1.0))), ctx)
    assert ctx.tape == []
    return float(backend.to_numpy(loss)), grads


def their_loss(model: Any, p: dict[str, Any], step: int) -> Any:
    """torch's, with each low-rank difference added to its weight as PEFT does it."""
    import torch

    from tests.models import torch_gpt, torch_vit

    x, y = (torch.tensor(a) for a in batch(model, step))
    whole = dict(p)
    for path, layer in model.named_layers():
        if isinstance(layer, LoRA):
            difference = whole.pop(f"{path}.lora_a") @ whole.pop(f"{path}.lora_b")
            whole[f"{path}.weight"] = whole[f"{path}.weight"] + layer.scale * difference
        elif isinstance(layer, FusedLoRA):
            parts = [*whole[f"{path}.weight"].split([c.stop - c.start for c, _ in layer.parts()], dim=1)]
            for i, (name, (_, low)) in enumerate(zip("qkv", layer.parts(), strict=True)):
                if low is not None:
                    a, b = (whole.pop(f"{path}.{name}.{factor}") for factor in ("lora_a", "lora_b"))
                    parts[i] = parts[i] + low.scale * (a @ b)
            whole[f"{path}.weight"] = torch.cat(parts, dim=1)
    forward: Any = torch_vit.forward if isinstance(model, ViT) else torch_gpt.forward
    logits = forward(whole, model.config, x)
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())


@pytest.mark.parametrize("kind", ["vit", "gpt"])
@pytest.mark.parametrize("way", WAYS)
def test_five_steps_are_torchs(kind: str, way: str) -> None:
    """Losses, all gradients, and the weights that AdamW makes of them by groups of parameters."""
    torch = pytest.importorskip("torch")
    from tests.models import torch_vit

    model = tuned("numpy", kind, WAYS[way])
    named, before = model.named_parameters(), model.state()
    p = torch_vit.parameters(before)
    for name, tensor in p.items():
        tensor.requires_grad_(named[name].trainable)
    groups = [
        {"params": [p[n]], "lr": LR * q.lr_scale, "weight_decay": DECAY * q.decay}
        for n, q in named.items()
        if q.trainable
    ]
    theirs, ours = torch.optim.AdamW(groups), optim.AdamW(model.store, weight_decay=DECAY)
    for step in range(STEPS):
        loss, grads = one_pass(model, step)
        expected = their_loss(model, p, step)
        theirs.zero_grad()
        expected.backward()
        assert equal("loss", np.asarray(loss), expected.detach().numpy(), TORCH).ok
        found = grads.to_host()
        assert found.keys() == {n for n, q in named.items() if q.trainable}
        scale = max(magnitude(p[n].grad.numpy()) for n in found)
        measures = [equal(n, g, p[n].grad.numpy(), TORCH, scale=scale) for n, g in found.items()]
        assert [str(m) for m in measures if not m.ok] == []
        ours.step(grads.finish(), lr=LR, step=step + 1)
        theirs.step()
    after = model.state()
    key_bias = "attention.qkv.bias"  # its gradient is zero but for rounding, which Adam divides by its own size
    for name, value in after.items():
        if not named[name].trainable:
            assert same_bits(name, value, before[name]).ok
        elif not name.endswith(key_bias):
            expected = p[name].detach().numpy()
            assert equal(name, value, expected, TORCH, scale=max(magnitude(expected), STEPS * LR)).ok, name


@pytest.mark.parametrize("kind", ["vit", "gpt"])
@pytest.mark.parametrize("way", WAYS)
def test_blocks_may_run_again(backend: Backend, kind: str, way: str) -> None:
    model = tuned(backend, kind, WAYS[way])
    kept, again = (one_pass(model, 0, recompute=recompute)[1].to_host() for recompute in (False, True))
    assert kept.keys() == again.keys()
    assert all(same_bits(n, g, kept[n]).ok for n, g in again.items())


def test_layers_learn_at_their_rates() -> None:
    model = tuned("numpy", "vit", Tuning(lr_decay=0.5))
    rates = {n: p.lr_scale for n, p in model.named_parameters().items()}
    assert {rates[n] for n in ("embedding.projection.weight", "token.weight", "positions.weight")} == {0.5**3}
    assert rates["blocks.0.norm1.weight"] == 0.5**2
    assert rates["blocks.1.mlp.fc2.bias"] == 0.5
    assert rates["norm.weight"] == rates["head.output.weight"] == 1.0


@pytest.mark.parametrize("kind", ["vit", "gpt"])
def test_frozen_layers_cost_no_backward(backend: Backend, kind: str) -> None:
    """No weight gradient of a frozen layer, and below the lowest that learns no gradient and nothing kept at all."""

    def cost(how: Tuning) -> dict[str, Any]:
        model = tuned(backend, kind, how)
        ids = model.config.vocabulary if isinstance(model, GPT) else 0
        shape = (model.config.context,) if isinstance(model, GPT) else (2, 6, 6)
        return {row.path: row for row in summarize(model, shape, ids, batch=2).rows}

    ends = ("embedding", "positions", *(["token"] if kind == "vit" else []))
    whole, frozen = cost(WAYS["all"]), cost(Tuning(freeze=(*ends, "blocks.0")))
    middle, lora = cost(Tuning(freeze=("blocks.1",))), cost(Tuning(lora=("blocks.1.attention.qkv",), rank=1))
    for path in ("blocks.1.mlp.fc1", "blocks.1.attention.qkv"):
        assert 2 * middle[path].own.backward == whole[path].own.backward  # the input's alone
    assert frozen["blocks.0"].total.backward == frozen["embedding"].total.backward == 0
    assert frozen["blocks.0"].total.kept == frozen["embedding"].total.kept == 0
    assert frozen["blocks.1"].total.backward == whole["blocks.1"].total.backward
    assert lora["blocks.0"].total.backward == lora["blocks.0"].total.kept == 0
    assert lora["blocks.1"].total.backward < whole["blocks.1"].total.backward


def test_what_is_frozen_has_no_moments() -> None:
    model = tuned("numpy", "vit", WAYS["lora"])
    optimizer, grads = optim.AdamW(model.store), model.gradients()
    learning = model.count_parameters(trainable=True)
    head = sum(p.size for n, p in model.named_parameters().items() if n.startswith("head."))
    assert learning == head + 3 * (2 * (8 + 24) + (8 + 32) + (32 + 8))
    for moment in optimizer.state.values():
        assert sum(m.size for m in moment) == learning
    assert sum(g.size for g in grads.segments if g is not None) == learning


def test_a_frozen_model_that_is_asked_for_the_inputs_gradient_gives_it(portable: Backend) -> None:
    model = tuned(portable, "vit", WAYS["the end"])
    x, _ = batch(model, 0)

    def gradient(model: Any) -> HostArray:
        ctx = Context(portable, grads=model.gradients(), input_gradient=True)
        found: HostArray = model.backward(np.ones_like(model.forward(x, ctx)), ctx)
        return found

    whole = tuned(portable, "vit", WAYS["all"])
    assert same_bits("dx", gradient(model), gradient(whole)).ok


@pytest.mark.parametrize("kind", ["vit", "gpt"])
@pytest.mark.parametrize("way", ["lora", "lora of query and value"])
def test_lora_starts_where_the_model_was_and_merges_to_what_it_learned(backend: Backend, kind: str, way: str) -> None:
    plain = tuned(backend, kind, Tuning())
    x = backend.asarray(batch(plain, 0)[0])
    before, state = backend.to_numpy(plain(x)), plain.state()
    tune(plain, Tuning(lora=("blocks.*",) if way == "lora" else WAYS[way].lora, rank=2))  # of a model that has data
    assert same_bits("logits", backend.to_numpy(plain(x)), before).ok
    assert merged_state(plain).keys() == state.keys()
    assert all(same_bits(n, a, state[n]).ok for n, a in merged_state(plain).items())

    learned = tuned(backend, kind, WAYS[way])
    merged = tuned(backend, kind, Tuning())
    merged.load_state(merged_state(learned))
    ours = backend.to_numpy(learned(x))
    assert magnitude(ours - before) > 0.01 * magnitude(before)
    assert equal("logits", backend.to_numpy(merged(x)), ours, BACKENDS).ok


def test_parts_of_a_fused_projection_learn_one_each() -> None:
    """Also where key and value have fewer heads; a pattern of the whole means one for the three."""
    model = GPT(GPTConfig.preset("tiny", heads=4, kv_heads=1))
    tune(model, Tuning(lora=("blocks.0.*.q", "blocks.0.*.v", "blocks.1.*.qkv", "blocks.1.*.k"), rank=2))
    learning = {n: p.shape for n, p in model.named_parameters().items() if p.trainable}
    assert learning == {
        "blocks.0.attention.qkv.q.lora_a": (8, 2),
        "blocks.0.attention.qkv.q.lora_b": (2, 8),
        "blocks.0.attention.qkv.v.lora_a": (8, 2),
        "blocks.0.attention.qkv.v.lora_b": (2, 2),
        "blocks.1.attention.qkv.lora_a": (8, 2),
        "blocks.1.attention.qkv.lora_b": (2, 12),
    }
    with pytest.raises(ConfigError, match=r"lora: blocks.0.attention.qkv: rank = 3 is outside 1 to 2"):
        tune(GPT(model.config), Tuning(lora=("*.v",), rank=3))


WRONG = [
    (Tuning(freeze=("blok.*",)), "freeze: 'blok.*' matches no parameter; did you mean 'blocks.*."),
    (Tuning(freeze=("*", "!neck")), "freeze: 'neck' matches no parameter"),
    (Tuning(freeze=("*",)), "leaves nothing to learn"),
    (
        Tuning(lora=("head.hidden",)),
        "lora: 'head.hidden' matches no affine layer; known: blocks.*.attention",
    ),
    (Tuning(lora=("norm",)), "lora: 'norm' matches no affine layer"),
    (Tuning(lora=("blocks.*",), rank=9), r"lora: blocks.0.attention.qkv: rank = 9 is outside 1 to 8"),
]


@pytest.mark.parametrize(("how", "message"), WRONG)
def test_patterns_that_cannot_be(how: Tuning, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tune(ViT(ViTConfig(**test_vit.SMALL)), how)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"lr_decay": 0.0}, {"lr_decay": 1.1}, {"rank": 0}, {"alpha": 0.0}])
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} = "):
        Tuning(**options)


@pytest.mark.parametrize("options", [{"rank": 2}, {"alpha": 8.0}])
def test_options_of_a_lora_that_is_not_there(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r" = \d.* is of a LoRA, and lora is empty; name its layers"):
        Tuning(**options)


def test_a_vit_for_other_classes_and_another_size() -> None:
    old = test_vit.build("numpy", dropout=0.1)
    config = ViTConfig(**{**test_vit.SMALL, "classes": 5, "image_size": 10})
    new = ViT(config).to("numpy", "float64")
    values, said = carry_over(old.state(), old.config, new.state(), config)
    assert said == [
        "positions interpolated from 3 x 3 to 5 x 5 patches",
        "a new head of 5 classes in place of the old one of 3",
    ]
    for name, value in old.state().items():
        if name == "positions.weight":
            assert np.array_equal(values[name], resize_positions(value, (3, 3), (5, 5), token=True))
        elif name.startswith("head."):
            assert np.array_equal(values[name], new.state()[name])
        else:
            assert values[name] is not None
            assert np.array_equal(values[name], value)
    new.load_state(values)
    same, said = carry_over(old.state(), old.config, old.state(), old.config)
    assert said == []
    assert all(np.array_equal(a, old.state()[n]) for n, a in same.items())
    _, said = carry_over(old.state(), old.config, old.state(), old.config, new_head=True)
    assert said == ["a new head of 3 classes in place of the old one of 3"]


def test_a_gpt_for_shorter_texts() -> None:
    old = test_gpt.build("numpy")
    config = GPTConfig(**{**vars(old.config), "context": old.config.context - 2})
    values, said = carry_over(old.state(), old.config, GPT(config).to("numpy", "float64").state(), config)
    assert said == [f"context {config.context} of {old.config.context}: the later positions are left out"]
    assert np.array_equal(values["positions.weight"], old.state()["positions.weight"][: config.context])


def test_shapes_that_cannot_change() -> None:
    vit, gpt = ViTConfig(**test_vit.SMALL), GPTConfig.preset("tiny")
    with pytest.raises(ConfigError, match=r"model.dim = 16: the weights are for 8; what may change is classes, "):
        check_change(vit, ViTConfig(**{**test_vit.SMALL, "dim": 16}))
    with pytest.raises(ConfigError, match=r"model.context = 9: the weights are for at most 8"):
        carry_over({}, gpt, {}, GPTConfig.preset("tiny", context=9))
    flat = ViTConfig(**test_vit.SMALL, pool="flatten")
    with pytest.raises(ConfigError, match=r"model.image_size = 8: a head on all tokens"):
        carry_over({}, flat, {}, ViTConfig(**{**test_vit.SMALL, "image_size": 8, "pool": "flatten"}))


@pytest.mark.parametrize("kind", ["vit", "gpt"])
def test_features_are_what_the_blocks_give(backend: Backend, kind: str) -> None:
    model: Any = tuned(backend, kind, Tuning())
    x = backend.asarray(batch(model, 0)[0])
    states = model.features(x)
    assert len(states) == model.config.depth + 1
    ctx = Context(backend)
    last = states[-1] if kind == "gpt" else model.norm.forward(states[-1], ctx)
    logits = model.head.forward(last if kind == "gpt" else model.pool.forward(last, ctx), ctx)
    assert equal("logits", backend.to_numpy(logits), backend.to_numpy(model(x)), BACKENDS).ok
    second = model.blocks[0].forward(states[0], ctx)
    assert equal("block 0", backend.to_numpy(states[1]), backend.to_numpy(second), BACKENDS).ok
