"""Fine-tuning of transformers' own models: hidden states, interpolated positions, five steps of AdamW, merged LoRA."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch

from tests.interop import theirs
from xpformer import optim
from xpformer.analysis.measure import HUGGING_FACE, TORCH, equal, magnitude, same_bits
from xpformer.array import HostArray
from xpformer.functional import cross_entropy
from xpformer.interop.families import family_of
from xpformer.interop.layouts import store
from xpformer.interop.pretrained import open_pretrained
from xpformer.layers import Context, FusedLoRA, LoRA
from xpformer.models.gpt import GPT
from xpformer.models.swin import Swin
from xpformer.models.tuning import HEAD, Tuning, carry_over, merged_state, tune
from xpformer.models.vit import ViT

STEPS, LR, DECAY = 5, 0.01, 0.1
KINDS: dict[str, tuple[Any, Any]] = {
    "vit": (theirs.vit, ViT),
    "swin": (partial(theirs.swin, use_absolute_embeddings=True), Swin),
    "gpt2": (theirs.gpt2, GPT),
}
EVERY = pytest.mark.parametrize("kind", KINDS)
WAYS = {
    "frozen parts": Tuning(freeze=("embedding", "positions", "*blocks.0")),
    "layer-wise decay": Tuning(lr_decay=0.75),
    "lora": Tuning(lora=("*.attention.*", "*blocks.1.mlp.fc1"), rank=2, alpha=3.0),
    "lora of query and value": Tuning(lora=("*.q", "*.v"), rank=2, alpha=3.0),
}


def pair(kind: str, folder: Path, dtype: str = "float64", **changes: Any) -> tuple[Any, Any]:
    make, ours = KINDS[kind]
    model = make(dtype, **changes)
    return model, ours.from_pretrained(theirs.save(model, folder))


def targets(kind: str, step: int) -> torch.Tensor:
    shape = (3, 7) if kind == "gpt2" else (3,)
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("dtype", HUGGING_FACE)
@EVERY
def test_features_are_their_hidden_states(kind: str, dtype: str, tmp_path: Path) -> None:
    model, ours = pair(kind, tmp_path / "a", dtype)
    x = theirs.inputs(model)
    with torch.no_grad():
        states = model(x, output_hidden_states=True).hidden_states
    found = ours.features(x.numpy())
    assert len(found) == len(states)
    measures = [equal("state", a, b.numpy(), HUGGING_FACE[dtype]) for a, b in zip(found, states, strict=True)]
    assert [str(m) for m in measures if not m.ok] == []


def test_features_of_a_padded_batch(tmp_path: Path) -> None:
    model, ours = pair("gpt2", tmp_path / "a")
    x = theirs.inputs(model)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 4:] = mask[2, 6:] = False  # on the right, where transformers counts positions as we do
    with torch.no_grad():
        states = model(x, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    found = ours.features(x.numpy(), attention_mask=mask.numpy())
    assert all(equal("state", a[mask.numpy()], b[mask].numpy(), TORCH).ok for a, b in zip(found, states, strict=True))


@pytest.mark.parametrize("dtype", HUGGING_FACE)
@pytest.mark.parametrize("size", [10, 25])
def test_another_image_size_is_theirs(dtype: str, size: int, tmp_path: Path) -> None:
    """15 x 15 pixels made smaller and larger, with the same positions that transformers interpolates."""
    from dataclasses import replace

    model = theirs.vit(dtype)
    found = open_pretrained(theirs.save(model, tmp_path / "a"))
    config = replace(found.config, image_size=size)
    other = ViT(config).to("numpy", dtype)
    values, said = carry_over(found.values, found.config, other.state(), config)
    other.load_state(values)
    assert said == [f"positions interpolated from 3 x 3 to {size // 5} x {size // 5} patches"]
    draw = np.random.default_rng(0)
    x = draw.standard_normal((3, 2, size, size)).astype(dtype)
    expected = theirs.logits(model, torch.tensor(x), interpolate_pos_encoding=True)
    assert equal("logits", other(x), expected, HUGGING_FACE[dtype]).ok


class Adapted(torch.nn.Module):
    """PEFT's formula around one of their linear maps: ``result + lora_B(lora_A(x)) * scaling``, on some columns."""

    def __init__(
        self, base: Any, a: HostArray, b: HostArray, scaling: float, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.base, self.scaling, self.padding = base, scaling, padding
        self.a, self.b = torch.nn.Parameter(torch.tensor(a)), torch.nn.Parameter(torch.tensor(b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference = torch.nn.functional.pad(x @ self.a @ self.b * self.scaling, self.padding)
        found: torch.Tensor = self.base(x) + difference
        return found


def adapt(model: Any, ours: Any) -> dict[str, tuple[str, Any, slice]]:
    """Put the same differences into their model; our name to (ours, their module, the columns of ours that it has)."""
    apart = {"qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
             "projection": ("attention.o_proj",), "fc1": ("mlp.fc1",)}  # fmt: skip
    fused = {"qkv": ("attn.c_attn",), "projection": ("attn.c_proj",), "fc1": ("mlp.c_fc",)}
    kind = model.config.model_type
    their_names = fused if kind == "gpt2" else apart
    body = {"vit": "vit.layers", "swin": "swin.encoder.layers", "gpt2": "transformer.h"}[kind]
    found: dict[str, tuple[str, Any, slice]] = {}
    state = ours.state()

    def block_of(path: str) -> Any:
        """blocks.1.attention.qkv, stages.0.blocks.1.attention.qkv"""
        first, *rest = path.split(".")
        return model.get_submodule(".".join((body, *rest[: 3 if first == "stages" else 1])))

    def put(above: Any, name: str, *how: Any) -> Any:
        above = above.get_submodule(name.rpartition(".")[0])
        last = name.rpartition(".")[2]
        setattr(above, last, Adapted(getattr(above, last), *how))
        return getattr(above, last)

    for path, layer in ours.named_layers():
        if isinstance(layer, FusedLoRA):
            block, width = block_of(path), sum(c.stop - c.start for c in layer.columns.values())
            for k, (part, columns) in enumerate(layer.columns.items()):
                if part not in "qv":
                    continue
                at = f"{path}.{part}"
                how = (state[f"{at}.lora_a"], state[f"{at}.lora_b"], 1.5)
                if len(their_names["qkv"]) == 3:
                    found[at] = (at, put(block, their_names["qkv"][k], *how), slice(None))
                else:
                    padding = (columns.start, width - columns.stop)
                    found[at] = (at, put(block, their_names["qkv"][0], *how, padding), slice(None))
        if isinstance(layer, LoRA):
            last = path.rpartition(".")[2]
            a, b = state[f"{path}.lora_a"], state[f"{path}.lora_b"]
            for k, name in enumerate(their_names[last]):
                width = b.shape[1] // len(their_names[last])
                columns = slice(k * width, (k + 1) * width)
                found[f"{path}.{k}"] = (path, put(block_of(path), name, a, b[:, columns], layer.scale), columns)
    return found


def key_biases(model: Any) -> dict[str, tuple[torch.Tensor, slice]]:
    """The part of a bias of theirs that is a key's, by our name of the whole, which is [query, key, value]."""
    named, width = dict(model.named_parameters()), model.config.hidden_size
    vit = {f"blocks.{i}.attention.qkv.bias": (f"vit.layers.{i}.attention.k_proj.bias", slice(None)) for i in range(2)}
    gpt = {
        f"blocks.{i}.attention.qkv.bias": (f"transformer.h.{i}.attn.c_attn.bias", slice(width, 2 * width))
        for i in range(2)
    }
    blocks = [(s, b) for s, depth in enumerate(getattr(model.config, "depths", ())) for b in range(depth)]
    swin = {
        f"stages.{s}.blocks.{b}.attention.qkv.bias": (
            f"swin.encoder.layers.{s}.blocks.{b}.attention.k_proj.bias",
            slice(None),
        )
        for s, b in blocks
    }
    found = {"vit": vit, "swin": swin, "gpt2": gpt}[model.config.model_type]
    return {ours: (named[name], part) for ours, (name, part) in found.items() if name in named}


@pytest.mark.parametrize("way", WAYS)
@EVERY
def test_five_steps_are_theirs(kind: str, way: str, tmp_path: Path) -> None:
    """Weights after five steps of torch's AdamW on their model, in groups of parameters.

    A key's bias moves all scores of a query alike, which softmax does not see, so its gradient is zero.  What comes out
    is rounding, and Adam would divide it by its own size: it is measured, and set to zero in both models.
    """
    how = WAYS[way]
    model, ours = pair(kind, tmp_path / "a")
    tune(ours, how, new=() if kind == "gpt2" else (HEAD,))
    family, named = family_of(ours.config), ours.named_parameters()
    draw = np.random.default_rng(1)
    lora = {n: 0.3 * draw.standard_normal(p.shape) for n, p in named.items() if "lora" in n}
    ours.load_state(ours.state() | lora)
    adapted = adapt(model, ours)
    if kind != "gpt2":
        shared = {}  # of one A for query, key and value, as the fused map has it
        for path, module, _ in adapted.values():
            module.a = shared.setdefault(path, module.a)

    plain = {n: p for n, p in named.items() if "lora" not in n}
    table = family.theirs.table(ours.config)
    our_name = {name: ours_name for ours_name in plain for name in table[ours_name].names}
    groups = []
    for name, parameter in model.named_parameters():
        bare = name.replace(".base", "")
        if name.endswith((".a", ".b")):
            groups.append({"params": [parameter], "lr": LR, "weight_decay": DECAY})
            continue
        mine = named[our_name[family.theirs.rename(bare)]]
        parameter.requires_grad_(mine.trainable)
        if mine.trainable:
            groups.append({"params": [parameter], "lr": LR * mine.lr_scale, "weight_decay": DECAY * mine.decay})
    optimizer, rule = torch.optim.AdamW(groups), optim.AdamW(ours.store, weight_decay=DECAY)
    keys = {name: place for name, place in key_biases(model).items() if named[name].trainable}
    measures = []
    for step in range(STEPS):
        x, y = theirs.inputs(model, step), targets(kind, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x).logits.flatten(0, -2), y.flatten()).backward()
        grads = ours.gradients()
        ctx = Context(ours.backend, grads=grads)
        ctx.forward(cross_entropy, ours.forward(x.numpy(), ctx), y.numpy())
        ours.backward(ctx.backward(cross_entropy, np.asarray(1.0)), ctx)
        segments, largest = grads.finish(), max(map(magnitude, grads.to_host().values()))
        for name, (parameter, part) in keys.items():
            width = named[name].shape[0] // 3
            for gradient in (grads[name][width : 2 * width], parameter.grad.numpy()[part]):
                measures.append(equal(f"gradient of {name}", gradient, np.zeros(width), TORCH, scale=largest))
                gradient[:] = 0.0
        optimizer.step()
        rule.step(segments, lr=LR, step=step + 1)
    after = ours.state()
    found = store(table, {n: after[n] for n in plain})
    for name, parameter in model.named_parameters():
        bare = family.theirs.rename(name.replace(".base", ""))
        if bare not in found or name.endswith((".a", ".b")):
            continue
        expected = parameter.detach().numpy()
        measures.append(equal(name, found[bare], expected, TORCH, scale=max(magnitude(expected), STEPS * LR)))
    for path, module, columns in adapted.values():
        for name, a, b in (
            ("a", after[f"{path}.lora_a"], module.a),
            ("b", after[f"{path}.lora_b"][:, columns], module.b),
        ):
            expected = b.detach().numpy()
            measures.append(equal(f"{path}.{name}", a, expected, TORCH, scale=max(magnitude(expected), STEPS * LR)))
    assert len(measures) > 10
    assert [str(m) for m in measures if not m.ok] == []
    learning = (
        {"frozen parts": 2, "layer-wise decay": 5} if kind == "swin" else {"frozen parts": 1, "layer-wise decay": 2}
    )
    assert len(keys) == learning.get(way, 0)
    frozen = [n for n, p in plain.items() if not p.trainable]
    before = KINDS[kind][1].from_pretrained(tmp_path / "a").state()
    assert bool(frozen) == (way != "layer-wise decay")
    assert all(same_bits(n, after[n], before[n]).ok for n in frozen)
    merged = KINDS[kind][1](ours.config).to("numpy", "float64")
    merged.load_state(merged_state(ours))
    ours.save_pretrained(tmp_path / "b")
    x = theirs.inputs(model)
    assert equal("merged", merged(x.numpy()), ours(x.numpy()), TORCH).ok
    again = theirs.logits(theirs.reopen(tmp_path / "b", type(model)), x)
    assert equal("in transformers", again, ours(x.numpy()), TORCH).ok
