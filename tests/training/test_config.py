"""Every rule of a training configuration."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from xpformer.errors import ConfigError
from xpformer.models.vit import ViT, ViTConfig
from xpformer.optim import EMA, SGD, Adam, AdamW
from xpformer.training import TrainConfig

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": "adamv"}, "optimizer = 'adamv' is unknown; did you mean 'adam"),
    ({"optimizer": "lion"}, "optimizer = 'lion' is unknown; known: adam, adamw, sgd"),
    ({"schedule": "step"}, r"schedule = 'step' needs milestones"),
    ({"schedule": "cosin"}, "schedule = 'cosin' is unknown; did you mean 'cosine'"),
    *[({name: 0}, f"{name} = 0 is less than 1") for name in ("batch_size", "accumulate", "keep", "log_every")],
    *[
        ({name: -1}, f"{name} = -1 is negative")
        for name in ("steps", "warmup_steps", "evaluate_every", "checkpoint_every", "patience")
    ],
    *[({"epochs": value}, "epochs = .* is outside 0 < epochs") for value in (0.0, -1.0, math.nan)],
    *[({"clip": value}, "clip = .* is negative; 0 turns clipping off") for value in (-0.1, math.nan)],
    *[({name: -0.1}, f"{name} = -0.1 is negative") for name in ("weight_decay", "gamma")],
    *[({"weight_decay": math.nan}, "weight_decay = nan is negative")],
    *[({"eps": value}, "eps = .* is not positive") for value in (0.0, -1.0, math.nan)],
    *[
        ({name: value}, rf"{name} = .* is outside 0 <= {name} < 1")
        for name in ("ema", "label_smoothing", "beta1", "beta2", "momentum")
        for value in (-0.1, 1.0, math.nan)
    ],
    *[({"lr": value}, "learning rate .* is not a positive number") for value in (0.0, -1.0, math.nan, math.inf)],
    *[({"floor": value}, "floor .* is outside") for value in (-0.1, 1.1, math.nan)],
    *[({"decay_fraction": value}, "decay_fraction = .* is outside") for value in (0.0, 1.1, math.nan)],
]


@pytest.mark.parametrize(("options", "match"), REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        TrainConfig(**options)
    assert "\n" not in str(caught.value)


def test_every_option_but_switches_has_a_rule() -> None:
    ruled = {name for options, _ in REFUSED for name in options}
    assert {f.name for f in fields(TrainConfig)} - ruled == {"milestones", "nesterov", "recompute"}


def test_the_defaults_and_the_limits_are_allowed() -> None:
    TrainConfig()
    TrainConfig(
        clip=0, ema=0, label_smoothing=0, weight_decay=0, gamma=0, momentum=0, beta1=0, floor=1, decay_fraction=1
    )
    TrainConfig(batch_size=1, accumulate=1, keep=1, log_every=1, steps=0, epochs=0.001)


@pytest.mark.parametrize(
    ("options", "per_epoch", "expected"),
    [
        ({"epochs": 4}, 550, 2200),
        ({"epochs": 0.5}, 11, 6),
        ({"epochs": 0.01}, 11, 1),
        ({"epochs": 3, "steps": 7}, 11, 7),
        ({"epochs": 1.25}, 8, 10),
    ],
)
def test_total_steps(options: dict[str, Any], per_epoch: int, expected: int) -> None:
    assert TrainConfig(**options).total_steps(per_epoch) == expected


def test_the_schedule_takes_every_option() -> None:
    config = TrainConfig(
        lr=0.5, schedule="step", warmup_steps=3, floor=0.1, milestones=(10, 20), gamma=0.2, decay_fraction=0.3
    )
    s = config.make_schedule(40)
    assert (s.peak, s.steps, s.shape, s.warmup, s.floor) == (0.5, 40, "step", 3, 0.1)
    assert (s.milestones, s.gamma, s.decay_fraction) == ((10, 20), 0.2, 0.3)
    assert [s(i) for i in (0, 3, 9, 10, 20)] == pytest.approx([0.125, 0.5, 0.5, 0.1, 0.02])


def test_the_optimizer_takes_every_option() -> None:
    store = ViT(ViTConfig.preset("tiny")).to("numpy").store
    common = {"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "momentum": 0.7, "nesterov": True}
    for name, kind in (("adamw", AdamW), ("adam", Adam)):
        rule = TrainConfig(optimizer=name, **common).make_optimizer(store)  # type: ignore[arg-type]
        assert type(rule) is kind
        assert isinstance(rule, Adam)
        assert (rule.beta1, rule.beta2, rule.eps, rule.weight_decay) == (0.8, 0.95, 1e-6, 0.1)
    sgd = TrainConfig(optimizer="sgd", **common).make_optimizer(store)  # type: ignore[arg-type]
    assert isinstance(sgd, SGD)
    assert (sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.7, True, 0.1)
    assert TrainConfig(ema=0).make_ema(store) is None
    ema = TrainConfig(ema=0.9).make_ema(store)
    assert isinstance(ema, EMA)
    assert ema.decay == 0.9
