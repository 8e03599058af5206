"""The GPT: its sizes, its gradients against torch's and transformers', its training, its cache, its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.models.pairwise import pairwise
from xpformer import optim
from xpformer.analysis.measure import BACKENDS, GENERATION, TORCH, TRANSFORMERS_LLAMA, equal, magnitude, same_bits
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError, ShapeError
from xpformer.functional import cross_entropy
from xpformer.layers import Context
from xpformer.models.gpt import GPT, PRESETS, GPTConfig
from xpformer.rng import Rng, host_generator

GOLDEN = {
    # the published sizes
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    # ours
    "seed": 10_926_382,
    "alphabet": 493_659,
    "nanogpt": 10_745_088,
    "nanogpt-baby": 804_096,
    "llama-tiny": 742_784,
    "tiny": 1_232,
}


def test_every_preset_has_a_golden_count() -> None:
    assert GOLDEN.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts(preset: str) -> None:
    assert GPT(PRESETS[preset]).count_parameters() == GOLDEN[preset]


SMALL = {"vocabulary": 11, "context": 8, "dim": 8, "depth": 2, "heads": 4, "hidden": 12}
ROWS = pairwise(
    {
        "positions": ("learned", "sincos1d", "rotary", "none"),
        "head": ("tied", "free", "double"),
        "activation": ("gelu", "gelu_tanh", "tanh", "relu", "swiglu"),
        "norm": ("layer_norm", "rms_norm"),
        "order": ("pre", "post"),
        "mlp_first": (False, True),
        "bias": (True, False),
        "kv_heads": (0, 1, 2),
        "loss_on": ("all", "last", "padded"),
    }
)
LLAMA = {
    "positions": "rotary",
    "norm": "rms_norm",
    "activation": "swiglu",
    "head": "free",
    "bias": False,
    "kv_heads": 2,
}
DROPPING = {"dropout": 0.2, "embedding_dropout": 0.3, "attention_dropout": 0.1}
REFERENCE = {"mlp_first": True, "activation": "relu", "head": "double", "init": "uniform"}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"activation": "gelu_tanh"},
    "llama": LLAMA,
    "reference": REFERENCE,
    "sincos, post-norm": {"positions": "sincos1d", "order": "post", "kv_heads": 1, "head": "free"},
}


def build(backend: Backend | str, dtype: str = "float64", **changes: Any) -> GPT:
    """A small model with random weights, biases and norms."""
    model = GPT(GPTConfig(**{**SMALL, **changes})).to(backend, dtype)
    generator = host_generator(0, "weights")
    values = {n: 0.3 * generator.standard_normal(p.shape) for n, p in model.named_parameters().items()}
    values |= {n: a + 1.0 for n, a in values.items() if "norm" in n and n.endswith("weight")}
    model.load_state(values)
    return model


def batch(model: GPT, seed: int = 0, shape: tuple[int, int] = (4, 7)) -> tuple[np.ndarray, np.ndarray]:
    """Ids, with repetitions, and the ids that follow."""
    ids = host_generator(seed, "batch").integers(0, model.config.vocabulary, (shape[0], shape[1] + 1))
    return ids[:, :-1], ids[:, 1:]


def padding(shape: tuple[int, int]) -> np.ndarray:
    """True where an id is a token: the first sequence is whole, the others lack more and more on the left."""
    return np.arange(shape[1]) >= np.arange(shape[0])[:, None]


def one_pass(
    model: GPT, ids: np.ndarray, targets: np.ndarray, loss_on: str = "all", rng: Rng | None = None
) -> dict[str, Any]:
    """Logits, loss and the gradients of all parameters."""
    backend, grads = model.backend, model.gradients()
    ctx = Context(backend, rng=rng, grads=grads)
    mask = backend.asarray(padding(ids.shape)) if loss_on == "padded" else None
    last = loss_on == "last"
    logits = model.forward(backend.asarray(ids), ctx, attention_mask=mask, last_only=last)
    loss = ctx.forward(cross_entropy, logits, backend.asarray(targets[:, -1] if last else targets))
    model.backward(ctx.backward(cross_entropy, backend.asarray(np.asarray(1.0, model.dtype))), ctx)
    assert ctx.tape == []
    host = {"logits": logits, "loss": loss}
    return {**{n: backend.to_numpy(a) for n, a in host.items()}, "gradients": grads.to_host()}


def counted(ids: np.ndarray, targets: np.ndarray, loss_on: str) -> np.ndarray:
    """The targets with -100 where the loss does not look."""
    return np.where(padding(ids.shape), targets, -100) if loss_on == "padded" else targets


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(map(str, row.values())))
def test_logits_and_all_gradients_are_torchs(spec: str, row: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from tests.models import torch_gpt, torch_vit

    options = dict(row)
    loss_on = options.pop("loss_on")
    model = build(spec, **options)
    ids, targets = batch(model)
    targets = counted(ids, targets, loss_on)
    ours = one_pass(model, ids, targets, loss_on)
    p = torch_vit.parameters(model.state())
    mask = torch.tensor(padding(ids.shape)) if loss_on == "padded" else None
    logits = torch_gpt.forward(p, model.config, torch.tensor(ids), mask)
    if loss_on == "last":
        logits, targets = logits[:, -1], targets[:, -1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch.tensor(targets).flatten())
    theirs = torch_vit.gradients(loss, p)
    assert ours["gradients"].keys() == theirs.keys()
    scale = max(map(magnitude, theirs.values()))
    looked_at = targets != -100
    measures = [equal(n, ours["gradients"][n], g, TORCH, scale=scale) for n, g in theirs.items()]
    measures += [equal("logits", ours["logits"][looked_at], logits.detach().numpy()[looked_at], TORCH)]
    measures += [equal("loss", ours["loss"], loss.detach().numpy(), TORCH)]
    assert [str(m) for m in measures if not m.ok] == []


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_and_all_gradients_are_those_of_transformers(family: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="transformers, the other implementation, is not installed")
    model = build("numpy", **VARIANTS[family], **({"norm_eps": 1e-6} if family == "llama" else {}))
    ids, targets = batch(model)
    ours = one_pass(model, ids, targets)
    theirs, names = (their_gpt2 if family == "gpt2" else their_llama)(model.config)
    theirs = theirs.double().eval()
    values = {their: get(model.state()) for their, get in names.items()}
    missing, unexpected = theirs.load_state_dict({n: torch.tensor(a) for n, a in values.items()}, strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}  # tied in GPT-2
    r = TRANSFORMERS_LLAMA if family == "llama" else TORCH
    logits = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    assert equal("logits", ours["logits"], logits.detach().numpy(), r).ok
    scale = max(map(magnitude, ours["gradients"].values()))
    for name, parameter in theirs.named_parameters():
        assert equal(name, names[name](ours["gradients"]), parameter.grad.numpy(), r, scale=scale).ok, name


def their_gpt2(config: GPTConfig) -> tuple[Any, dict[str, Callable[[Any], Any]]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    c = config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocabulary, n_positions=c.context, n_embd=c.dim, n_layer=c.depth, n_head=c.heads,
            n_inner=c.hidden, bos_token_id=None, eos_token_id=None, attn_implementation="eager",
        )
    )  # fmt: skip
    pairs = {"transformer.wte.weight": "embedding.weight", "transformer.wpe.weight": "positions.weight"}
    pairs |= {f"transformer.ln_f.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
    parts = {
        "ln_1": "norm1", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.projection",
        "ln_2": "norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    for i in range(c.depth):
        for their, our in parts.items():
            pairs |= {f"transformer.h.{i}.{their}.{k}": f"blocks.{i}.{our}.{k}" for k in ("weight", "bias")}
    return theirs, {their: lambda state, our=our: state[our] for their, our in pairs.items()}


def their_llama(config: GPTConfig) -> tuple[Any, dict[str, Callable[[Any], Any]]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    c = config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocabulary, max_position_embeddings=c.context, hidden_size=c.dim, num_hidden_layers=c.depth,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, intermediate_size=c.hidden,
            rms_norm_eps=c.norm_eps, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
            attn_implementation="eager",
        )
    )  # fmt: skip
    names: dict[str, Callable[[Any], Any]] = {
        "model.embed_tokens.weight": lambda state: state["embedding.weight"],
        "model.norm.weight": lambda state: state["norm.weight"],
        "lm_head.weight": lambda state: state["head.weight"].T,
    }
    narrow = c.dim // c.heads * c.kv_heads
    ends = {"q": (0, c.dim), "k": (c.dim, c.dim + narrow), "v": (c.dim + narrow, c.dim + 2 * narrow)}
    halves = {"gate": (0, c.hidden), "up": (c.hidden, 2 * c.hidden)}
    for i in range(c.depth):
        theirs_at, ours_at = f"model.layers.{i}", f"blocks.{i}"
        columns = {f"self_attn.{n}_proj": ("attention.qkv", e) for n, e in ends.items()}
        columns |= {f"mlp.{n}_proj": ("mlp.fc1", e) for n, e in halves.items()}
        columns |= {"self_attn.o_proj": ("attention.projection", (0, c.dim)), "mlp.down_proj": ("mlp.fc2", (0, c.dim))}
        for their, (our, (start, stop)) in columns.items():
            names[f"{theirs_at}.{their}.weight"] = lambda state, n=f"{ours_at}.{our}.weight", a=start, b=stop: (
                state[n][:, a:b].T
            )
        for their, our in (("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2")):
            names[f"{theirs_at}.{their}.weight"] = lambda state, n=f"{ours_at}.{our}.weight": state[n]
    return theirs, names


def test_tied_weights_get_both_gradients(backend: Backend) -> None:
    tied, free = build(backend), build(backend, head="free")
    shared = tied.state()
    free.load_state({**shared, "head.weight": shared["embedding.weight"].T})
    ids, targets = batch(tied)
    ours, parts = one_pass(tied, ids, targets), one_pass(free, ids, targets)
    both = parts["gradients"]["embedding.weight"] + parts["gradients"]["head.weight"].T
    assert min(magnitude(parts["gradients"][n]) for n in ("embedding.weight", "head.weight")) > 0.01 * magnitude(both)
    assert equal("embedding.weight", ours["gradients"]["embedding.weight"], both, BACKENDS).ok


@pytest.mark.parametrize("name", [*VARIANTS, "dropping"])
def test_every_backend_gives_the_same_gradients(backend: Backend, portable: Backend, name: str) -> None:
    options = {**VARIANTS, "dropping": {**DROPPING, **LLAMA}}[name]
    found = []
    for each in (backend, portable):
        model = build(each, **options)
        found.append(one_pass(model, *batch(model), "padded", rng=Rng(1, 2)))
    ours, theirs = found
    scale = max(map(magnitude, theirs["gradients"].values()))
    measures = [equal(n, ours["gradients"][n], g, BACKENDS, scale=scale) for n, g in theirs["gradients"].items()]
    measures += [equal("logits", ours["logits"], theirs["logits"], BACKENDS)]
    assert [str(m) for m in measures if not m.ok] == []


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
def test_fifty_training_steps_give_torchs_losses(spec: str) -> None:
    torch = pytest.importorskip("torch")
    from tests.models import torch_gpt, torch_vit

    steps, lr, decay = 50, 0.003, 0.05
    model = build(spec, **VARIANTS["gpt2"])
    backend, grads, named = model.backend, model.gradients(), model.named_parameters()
    optimizer = optim.AdamW(model.store, weight_decay=decay)
    p = torch_vit.parameters(model.state())
    groups = [
        {"params": [t for n, t in p.items() if named[n].decay is on], "weight_decay": decay * on}
        for on in (True, False)
    ]
    theirs = torch.optim.AdamW(groups, lr=lr)
    ours_losses, their_losses = [], []
    for step in range(1, steps + 1):
        ids, targets = batch(model, seed=step % 4)
        ctx = Context(backend, grads=grads)
        grads.reset()
        loss = ctx.forward(cross_entropy, model.forward(backend.asarray(ids), ctx), backend.asarray(targets))
        model.backward(ctx.backward(cross_entropy, backend.asarray(np.asarray(1.0))), ctx)
        segments = grads.finish()
        scale = optim.clip_scale(optim.global_norm(model.store, segments), 1.0)
        optimizer.step(segments, lr=lr, step=step, scale=scale)
        ours_losses.append(float(loss))
        theirs.zero_grad()
        logits = torch_gpt.forward(p, model.config, torch.tensor(ids))
        torch_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
        torch_loss.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        theirs.step()
        their_losses.append(torch_loss.item())
    assert ours_losses[-1] < 0.9 * ours_losses[0]
    assert np.max(np.abs(np.subtract(ours_losses, their_losses))) < TORCH * max(their_losses)


def training_step(model: GPT, ids: Any, targets: Any, mask: Any) -> list[Any]:
    """A whole step, nothing read on the host: the segments that it leaves."""
    backend, grads = model.backend, model.gradients()
    optimizer = optim.AdamW(model.store, weight_decay=0.1)
    for step in (1, 2):
        grads.reset()
        ctx = Context(backend, rng=Rng(0, step), grads=grads)
        loss = ctx.forward(cross_entropy, model.forward(ids, ctx, attention_mask=mask), targets)
        one = backend.xp.ones((), dtype=loss.dtype, device=backend.device)
        model.backward(ctx.backward(cross_entropy, one), ctx)
        segments = grads.finish()
        scale = optim.clip_scale(optim.global_norm(model.store, segments), 0.1)
        optimizer.step(segments, lr=1e-3, step=step, scale=scale)
    return [s.data for s in model.store.segments]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_training_step_on_torchs_meta_device_asks_for_no_value(name: str) -> None:
    pytest.importorskip("torch")
    backend = get_backend("torch:meta")
    model, xp = GPT(GPTConfig(**{**SMALL, **DROPPING, **VARIANTS[name]})).to(backend), backend.xp
    ids = xp.zeros((3, 5), dtype=xp.int64, device="meta")
    segments = training_step(model, ids, ids, xp.ones((3, 5), dtype=xp.bool, device="meta"))
    assert all(a.device.type == "meta" and a.dtype == xp.float32 for a in segments)
    ctx = Context(backend, cache=model.new_cache(3))
    assert tuple(model.forward(ids, ctx, last_only=True).shape) == (3, 11)


def test_float32_stays_float32(backend: Backend) -> None:
    for options in ({**DROPPING, **LLAMA}, {**REFERENCE, "positions": "sincos1d"}):
        model = build(backend, "float32", **options)
        found = one_pass(model, *batch(model), "padded", rng=Rng(0, 1))
        assert {a.dtype.name for a in (found["logits"], *found["gradients"].values())} == {"float32"}


# ---- generation ----


@pytest.mark.parametrize("dtype", GENERATION)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_gives_the_logits_of_the_whole_pass(backend: Backend, name: str, dtype: str) -> None:
    """Along a whole greedy generation, from a prompt to a full context."""
    model = build(backend, dtype, **VARIANTS[name])
    ids = batch(model, shape=(2, 3))[0]
    cache = model.new_cache(2)
    new = ids
    while ids.shape[1] <= model.config.context:
        cached = backend.to_numpy(model.forward(backend.asarray(new), Context(backend, cache=cache)))
        whole = backend.to_numpy(model(backend.asarray(ids)))
        measure = equal(f"{ids.shape[1]} tokens", cached, whole[:, -new.shape[1] :], GENERATION[dtype])
        assert measure.ok, str(measure)
        new = np.argmax(whole[:, -1:], axis=-1)
        ids = np.concatenate([ids, new], axis=1)
    assert cache.filled == model.config.context


@pytest.mark.parametrize("dtype", GENERATION)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_padded_sequence_gets_the_logits_that_it_gets_alone(backend: Backend, name: str, dtype: str) -> None:
    model = build(backend, dtype, **VARIANTS[name])
    ids, following = batch(model, shape=(3, 5))
    mask = padding(ids.shape)
    cache = model.new_cache(3)
    pieces = [
        model.forward(backend.asarray(ids), Context(backend), attention_mask=backend.asarray(mask)),
        model.forward(backend.asarray(ids), Context(backend, cache=cache), attention_mask=backend.asarray(mask)),
        *(model.forward(backend.asarray(following[:, i : i + 1]), Context(backend, cache=cache)) for i in (0, 1)),
    ]
    whole, *steps = (backend.to_numpy(piece) for piece in pieces)
    called = backend.to_numpy(model(backend.asarray(ids), attention_mask=backend.asarray(mask.astype("int64"))))
    assert same_bits("0 and 1", called, whole).ok
    cached = np.concatenate(steps, axis=1)
    for row in range(3):
        sequence = np.concatenate([ids[row, row:], following[row, :2]])[None]
        alone = backend.to_numpy(model(backend.asarray(sequence)))[0]
        measures = [
            equal("padded", whole[row, row:], alone[:-2], GENERATION[dtype]),
            equal("padded with cache", cached[row, row:], alone, GENERATION[dtype]),
        ]
        assert [str(m) for m in measures if not m.ok] == []


def test_a_mask_can_come_late(backend: Backend) -> None:
    """What was read without a mask was tokens."""
    model = build(backend)
    ids, _ = batch(model, shape=(2, 4))
    cache = model.new_cache(2)
    model.forward(backend.asarray(ids[:, :2]), Context(backend, cache=cache))
    mask = np.asarray([[True, True], [True, False]])
    late = model.forward(
        backend.asarray(ids[:, 2:]), Context(backend, cache=cache), attention_mask=backend.asarray(mask)
    )
    whole = model.forward(
        backend.asarray(ids),
        Context(backend),
        attention_mask=backend.asarray(np.concatenate([np.ones((2, 2), bool), mask], axis=1)),
    )
    assert equal("late", backend.to_numpy(late), backend.to_numpy(whole)[:, 2:], GENERATION["float64"]).ok


def test_the_last_token_alone(backend: Backend) -> None:
    model = build(backend)
    ids = backend.asarray(batch(model)[0])
    last = backend.to_numpy(model.forward(ids, Context(backend), last_only=True))
    assert equal("last", last, backend.to_numpy(model(ids))[:, -1], GENERATION["float64"]).ok


def test_a_token_does_not_see_the_future(portable: Backend) -> None:
    for options in VARIANTS.values():
        model = build(portable, **options)
        ids = batch(model)[0]
        changed = ids.copy()
        changed[:, 4] = (changed[:, 4] + 1) % model.config.vocabulary
        before, after = model(ids), model(changed)
        assert same_bits("past", before[:, :4], after[:, :4]).ok
        assert not np.any(np.all(before[:, 4:] == after[:, 4:], axis=-1))


# ---- initial values ----


def test_initial_values_are_gpt2s() -> None:
    state = GPT(GPTConfig.preset("nanogpt-baby")).to("numpy").state()
    spread = {n: float(a.std()) for n, a in state.items() if a.ndim == 2}
    for name, std in spread.items():
        residual = name.endswith(("attention.projection.weight", "mlp.fc2.weight"))
        assert std == pytest.approx(0.02 / 8**0.5 if residual else 0.02, rel=0.03), name
    assert all((a == 1.0).all() for n, a in state.items() if a.ndim == 1)


def test_a_new_model_guesses(portable: Backend) -> None:
    """The first loss is about log V."""
    model = GPT(GPTConfig.preset("tiny")).to(portable, "float64")
    assert one_pass(model, *batch(model))["loss"] == pytest.approx(np.log(11), rel=0.01)


# ---- errors ----

ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary": ({"vocabulary": 0}, "vocabulary = 0 is not positive"),
    "hidden": ({"hidden": -1}, "hidden = -1 is negative"),
    "activation": ({"activation": "swiglo"}, "activation = 'swiglo' is unknown; did you mean 'swiglu'?"),
    "norm": ({"norm": "rms"}, "norm = 'rms' is unknown; "),
    "order": ({"order": "past"}, "order = 'past' is unknown; did you mean 'post'?"),
    "positions": ({"positions": "rotory"}, "positions = 'rotory' is unknown; did you mean 'rotary'?"),
    "head": ({"head": "tide"}, "head = 'tide' is unknown; did you mean 'tied'?"),
    "init": ({"init": "gpt3"}, "init = 'gpt3' is unknown; did you mean 'gpt2'?"),
    "dropout": ({"dropout": 1.0}, "dropout = 1.0 is outside 0 <= rate < 1"),
    "norm_eps": ({"norm_eps": 0.0}, "norm_eps = 0.0 is not positive"),
    "heads": ({"heads": 5}, "heads = 5 does not divide dim = 128"),
    "kv_heads": ({"kv_heads": 3}, "kv_heads = 3 does not divide heads = 4"),
    "rotary": (
        {"positions": "rotary", "dim": 12, "heads": 4},
        "positions = 'rotary' needs dim / heads to be even, got 12 / 4 = 3",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_config_that_cannot_be_says_why(name: str) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(ConfigError) as error:
        GPTConfig(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_presets_and_options() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'gpt3'; did you mean 'gpt2'"):
        GPTConfig.preset("gpt3")
    with pytest.raises(ConfigError, match="unknown GPT option 'detph'; did you mean 'depth'"):
        GPTConfig.preset("tiny", detph=3)


def test_ids_that_do_not_fit(backend: Backend) -> None:
    model = build(backend)
    ids = backend.asarray(np.zeros((2, 3), "int64"))
    with pytest.raises(ShapeError, match=r"GPT: ids have shape \(3,\) and dtype .*int64, expected integers \(B, T\)"):
        model(ids[0, ...])
    with pytest.raises(ShapeError, match=r"GPT: ids have shape \(2, 3\) and dtype .*float64"):
        model(backend.zeros((2, 3), "float64"))
    with pytest.raises(ShapeError, match="GPT: 9 tokens, but the context is 8; give fewer ids"):
        model(backend.asarray(np.zeros((2, 9), "int64")))
    for mask in (np.ones((2, 4), bool), np.ones((2, 3), "float64")):
        with pytest.raises(ShapeError, match=r"GPT: attention_mask .*, expected bool or integers \(2, 3\), as the ids"):
            model.forward(ids, Context(backend), attention_mask=backend.asarray(mask))
