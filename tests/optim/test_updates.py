"""Update rules against torch.optim, and what holds for all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from xpformer import optim
from xpformer.analysis.kernel_cases import KERNEL_CASES
from xpformer.analysis.measure import BACKENDS, equal, same_bits
from xpformer.array import spans
from xpformer.backend import Backend, get_backend
from xpformer.errors import CheckpointError, ConfigError
from xpformer.layers import MLP
from xpformer.rng import host_generator

STEPS = 10


def model_of(backend: Backend | str, *, frozen: bool = False, dtype: str = "float64") -> MLP:
    """Matrices that decay, biases that do not, one learning-rate scale, perhaps something frozen."""
    model = MLP(5, 7)
    if frozen:
        model.fc1.weight.trainable = False
    model.to(backend, dtype)
    generator = host_generator(0, "weights")
    model.load_state({n: generator.standard_normal(p.shape) for n, p in model.named_parameters().items()})
    return model


def gradients_of(model: MLP, step: int) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Random gradients by name, and as segments."""
    generator = host_generator(step, "gradients")
    named = {n: 3.0 * generator.standard_normal(p.shape) for n, p in model.named_parameters().items()}
    grads = model.gradients()
    for name, parameter in model.named_parameters().items():
        if parameter.trainable:
            grads.add(parameter, model.backend.asarray(named[name], model.dtype))
    return named, grads.finish()


RULES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "sgd": (lambda s: optim.SGD(s, momentum=0.0), "SGD", {}),
    "momentum": (lambda s: optim.SGD(s, momentum=0.9), "SGD", {"momentum": 0.9}),
    "nesterov": (
        lambda s: optim.SGD(s, momentum=0.8, nesterov=True),
        "SGD",
        {"momentum": 0.8, "nesterov": True},
    ),
    "momentum, decay": (lambda s: optim.SGD(s, weight_decay=0.1), "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": (optim.Adam, "Adam", {}),
    "adam, decay": (lambda s: optim.Adam(s, weight_decay=0.1), "Adam", {"weight_decay": 0.1}),
    "adam, betas": (
        lambda s: optim.Adam(s, beta1=0.8, beta2=0.95, eps=1e-3),
        "Adam",
        {"betas": (0.8, 0.95), "eps": 1e-3},
    ),
    "adamw": (lambda s: optim.AdamW(s, weight_decay=0.1), "AdamW", {"weight_decay": 0.1}),
    "adamw, no decay": (optim.AdamW, "AdamW", {"weight_decay": 0.0}),
}


@pytest.mark.parametrize("clip", [None, 0.7, 1e9])
@pytest.mark.parametrize("rule", RULES)
def test_ten_steps_are_torchs(backend: Backend, rule: str, clip: float | None) -> None:
    torch = pytest.importorskip("torch")
    make, kind, options = RULES[rule]
    model = model_of(backend)
    optimizer = make(model.store)
    p = {n: torch.tensor(a, requires_grad=True) for n, a in model.state().items()}
    decaying = [p[n] for n, q in model.named_parameters().items() if q.decay]
    rest = [p[n] for n, q in model.named_parameters().items() if not q.decay]
    theirs = getattr(torch.optim, kind)(
        [{"params": decaying}, {"params": rest, "weight_decay": 0.0}], lr=1.0, **options
    )
    for step in range(1, STEPS + 1):
        lr = 0.01 * step
        named, segments = gradients_of(model, step)
        for name, tensor in p.items():
            tensor.grad = torch.tensor(named[name])
        norm = optim.global_norm(model.store, segments, parts=3)
        if clip is not None:
            their_norm = torch.nn.utils.clip_grad_norm_(list(p.values()), clip)
            assert backend.to_numpy(norm) == pytest.approx(their_norm.item(), rel=1e-14)
        scale = 1.0 if clip is None else optim.clip_scale(norm, clip)
        optimizer.step(segments, lr=lr, step=step, scale=scale)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.step()
    measures = [equal(n, a, p[n].detach().numpy(), BACKENDS) for n, a in model.state().items()]
    assert [str(m) for m in measures if not m.ok] == []


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_the_first_step_of_adam_is_the_sign_times_the_rate(backend: Backend, kind: Any) -> None:
    """With a wrong bias correction (the reference's) it is not."""
    model = model_of(backend)
    before = model.state()
    named, segments = gradients_of(model, 1)
    kind(model.store, eps=1e-16).step(segments, lr=0.125, step=1)
    for name, after in model.state().items():
        assert np.allclose(before[name] - after, 0.125 * np.sign(named[name]), rtol=0, atol=1e-11)


def test_wrong_bias_corrections_would_fail() -> None:
    """Dividing by 1 - beta instead of 1 - beta^step, or not at all, moves the tenth step by more than half."""
    case = {"lr": 1.0, "weight_decay": 0.0, "decoupled": True, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    g = m = np.ones(3)
    p, v = np.zeros(3), np.ones(3) * (1 - 0.999**10)
    right = {"correction1": 1 - 0.9**10, "correction2": 1 - 0.999**10}
    wrongs = [{"correction1": 1 - 0.9, "correction2": 1 - 0.999}, {"correction1": 1.0, "correction2": 1.0}]
    expected, *others = (optim.AdamW.kernel(p, g, m, v, **case, **c)[0] for c in (right, *wrongs))
    assert all(np.all(np.abs(other / expected - 1.0) > 0.05) for other in others)


@pytest.mark.parametrize("flag", ["number", "array"])
@pytest.mark.parametrize("rule", ["momentum", "adamw", "adam, decay"])
def test_a_step_that_is_not_finite_leaves_every_bit(backend: Backend, rule: str, flag: str) -> None:
    make = RULES[rule][0]
    model = model_of(backend, dtype="float32")
    optimizer = make(model.store)
    _, segments = gradients_of(model, 1)
    optimizer.step(segments, lr=0.1, step=1)
    weights, moments = model.state(), optimizer.to_host()
    grads = model.gradients()
    for parameter in model.named_parameters().values():
        grads.add(parameter, backend.asarray(np.full(parameter.shape, np.nan, "float32")))
    xp = backend.xp
    finite: Any = False if flag == "number" else xp.isfinite(optim.global_norm(model.store, grads.finish()))
    optimizer.step(grads.finish(), lr=0.1, step=2, finite=finite, parts=2)
    assert all(same_bits(n, a, weights[n]).ok for n, a in model.state().items())
    assert all(same_bits(n, a, moments[n]).ok for n, a in optimizer.to_host().items())
    good: Any = True if flag == "number" else xp.isfinite(optim.global_norm(model.store, segments))
    optimizer.step(segments, lr=0.1, step=2, finite=good)
    assert not any(np.array_equal(a, weights[n]) for n, a in model.state().items())


@pytest.mark.parametrize("rule", RULES)
def test_three_parts_are_one_part_to_the_bit(backend: Backend, rule: str) -> None:
    make = RULES[rule][0]
    states = []
    for parts in (1, 3, 1000):
        model = model_of(backend, dtype="float32")
        optimizer, ema = make(model.store), optim.EMA(model.store, 0.9)
        for step in (1, 2):
            optimizer.step(gradients_of(model, step)[1], lr=0.1, step=step, parts=parts)
            ema.update(step, parts=parts)
        states.append(model.state() | optimizer.to_host() | {f"ema.{n}": a for n, a in ema.to_host().items()})
    assert all(same_bits(n, a, other[n]).ok for other in states[1:] for n, a in states[0].items())


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_replaced_kernels_train_as_the_portable_ones(rule: str) -> None:
    states = []
    for spec in ("numpy", "numpy:portable"):
        model = model_of(spec)
        optimizer, ema = RULES[rule][0](model.store), optim.EMA(model.store, 0.9)
        for step in range(1, STEPS + 1):
            segments = gradients_of(model, step)[1]
            scale = optim.clip_scale(optim.global_norm(model.store, segments), 1.0)
            optimizer.step(segments, lr=0.1, step=step, scale=scale, parts=2)
            ema.update(step)
        states.append(model.state() | optimizer.to_host() | {f"ema.{n}": a for n, a in ema.to_host().items()})
    assert [n for n, a in states[0].items() if not equal(n, a, states[1][n], BACKENDS).ok] == []


def test_frozen_parameters_and_rate_scales(backend: Backend) -> None:
    model = model_of(backend, frozen=True)
    scaled = model_of(backend)
    scaled.fc2.weight.lr_scale = 0.5
    scaled.to(backend)  # lays the segments out again
    for each in (model, scaled):
        before = each.state()
        optim.SGD(each.store, momentum=0.0).step(gradients_of(each, 1)[1], lr=0.1, step=1)
        named, _ = gradients_of(each, 1)
        for name, after in each.state().items():
            rate = 0.1
            if each is model and name == "fc1.weight":
                rate = 0.0
            if each is scaled and name == "fc2.weight":
                rate = 0.05
            assert np.allclose(after, before[name] - rate * named[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
@pytest.mark.parametrize("frozen", [False, True])
def test_moments_round_trip(backend: Backend, rule: str, frozen: bool) -> None:
    make = RULES[rule][0]
    model = model_of(backend, frozen=frozen)
    optimizer = make(model.store)
    optimizer.step(gradients_of(model, 1)[1], lr=0.1, step=1)
    saved, weights = optimizer.to_host(), model.state()
    trainable = {n for n, p in model.named_parameters().items() if p.trainable}
    assert saved.keys() == {f"{m}.{n}" for m in optimizer.moments for n in trainable}
    optimizer.step(gradients_of(model, 2)[1], lr=0.1, step=2)
    expected = model.state()
    model.load_state(weights)
    fresh = make(model.store)
    fresh.load(saved)
    fresh.step(gradients_of(model, 2)[1], lr=0.1, step=2)
    assert all(same_bits(n, a, expected[n]).ok for n, a in model.state().items())


def test_moments_that_do_not_fit(portable: Backend) -> None:
    model = model_of(portable)
    optimizer = optim.AdamW(model.store)
    saved = optimizer.to_host()
    with pytest.raises(CheckpointError, match=r"the optimizer has no moment 'q\.fc1\.weight'; it keeps m, v"):
        optimizer.load({**saved, "q.fc1.weight": np.zeros(3)})
    with pytest.raises(CheckpointError, match="moments v do not belong to this model: 1 missing"):
        optimizer.load({n: a for n, a in saved.items() if n != "v.fc1.bias"})
    with pytest.raises(CheckpointError, match=r"moments m: fc1\.bias has shape \(2,\), the model \(7,\)"):
        optimizer.load({**saved, "m.fc1.bias": np.zeros(2)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: optim.SGD(s, momentum=1.0), "momentum = 1.0 is outside 0 <= momentum < 1"),
        (lambda s: optim.SGD(s, weight_decay=-1.0), "weight_decay = -1.0 is negative"),
        (lambda s: optim.Adam(s, beta1=1.0), "beta1 = 1.0 is outside 0 <= beta1 < 1"),
        (lambda s: optim.Adam(s, beta2=-0.1), "beta2 = -0.1 is outside 0 <= beta2 < 1"),
        (lambda s: optim.AdamW(s, eps=0.0), "eps = 0.0 is not positive"),
        (lambda s: optim.AdamW(s, weight_decay=math.nan), "weight_decay = nan is negative"),
        (lambda s: optim.EMA(s, 1.0), "ema = 1.0 is outside 0 < decay < 1"),
    ],
)
def test_hyperparameters_out_of_range(portable: Backend, make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(model_of(portable).store)
    assert str(error.value) == message


def test_the_base_class_has_no_rule(portable: Backend) -> None:
    with pytest.raises(NotImplementedError):
        optim.Optimizer(model_of(portable).store).hyperparameters(1)


# ---- average, norm ----


def test_the_average_follows_its_formula(backend: Backend) -> None:
    model = model_of(backend)
    ema = optim.EMA(model.store, 0.5)
    expected = model.state()
    for step in range(1, 20):
        values = {n: a * 1.3 + step for n, a in model.state().items()}
        model.load_state(values)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {n: decay * a + (1 - decay) * values[n] for n, a in expected.items()}
    assert [n for n, a in ema.to_host().items() if not equal(n, a, expected[n], BACKENDS).ok] == []
    again = optim.EMA(model.store, 0.5)
    again.load(ema.to_host())
    assert all(same_bits(n, a, ema.to_host()[n]).ok for n, a in again.to_host().items())


@pytest.mark.parametrize("flag", ["number", "array"])
def test_the_average_stays_where_a_step_is_not_finite(backend: Backend, flag: str) -> None:
    model = model_of(backend)
    ema = optim.EMA(model.store, 0.5)
    before = model.state()
    model.load_state({n: a + 1.0 for n, a in before.items()})
    ema.update(1, finite=False if flag == "number" else backend.asarray(np.asarray(False)), parts=2)
    assert all(same_bits(n, a, before[n]).ok for n, a in ema.to_host().items())


def test_the_average_does_not_move_with_the_weights(backend: Backend) -> None:
    model = model_of(backend)
    ema = optim.EMA(model.store, 0.5)
    before = model.state()
    model.load_state({n: a + 1.0 for n, a in before.items()})
    assert all(np.array_equal(a, before[n]) for n, a in ema.to_host().items())


@pytest.mark.parametrize("parts", [1, 3])
def test_the_global_norm(backend: Backend, parts: int) -> None:
    model = model_of(backend, frozen=True)
    named, segments = gradients_of(model, 1)
    norm = optim.global_norm(model.store, segments, parts=parts)
    expected = math.sqrt(sum(float(np.sum(g * g)) for n, g in named.items() if n != "fc1.weight"))
    assert float(backend.to_numpy(norm)) == pytest.approx(expected, rel=1e-14)
    for limit in (0.5, 1e6):
        assert float(optim.clip_scale(norm, limit)) == pytest.approx(min(1.0, limit / (expected + 1e-6)), rel=1e-14)


def test_clip_scale_of_a_number() -> None:
    assert optim.clip_scale(2.0, 1.0) == pytest.approx(0.5)
    assert optim.clip_scale(0.5, 1.0) == 1.0


def test_the_norm_does_not_lose_digits_in_float32(backend: Backend) -> None:
    """Twenty million ones: a sum in one float32 lane would stop at 2^24, and a coarse one is wrong long before."""
    ones = backend.xp.ones((2**24 + 2**22,), dtype=backend.dtype("float32"), device=backend.device)
    total = backend.kernel(optim.sum_of_squares)(ones)
    assert float(backend.to_numpy(total)) == 2**24 + 2**22


@pytest.mark.parametrize(("length", "parts"), [(10, 3), (2, 5), (0, 3), (7, 1)])
def test_spans_cover_everything_once(length: int, parts: int) -> None:
    parted = spans(length, parts)
    assert [i for s in parted for i in range(length)[s]] == list(range(length))
    assert all(s.start < s.stop for s in parted)
    assert max((s.stop - s.start for s in parted), default=0) - min((s.stop - s.start for s in parted), default=0) <= 1


def test_update_kernels_have_cases_for_every_option() -> None:
    names = {c.name for c in KERNEL_CASES["adam_step"]}
    assert {"decoupled plain", "coupled no decay", "coupled not finite"} <= names
    assert get_backend("numpy:portable").kernel(optim.SGD.kernel) is optim.SGD.kernel.portable
