"""Right backends agree, wrong ones do not, and the picture shows both."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.wrong import MISTAKES, Wrong
from tests.conftest import backend_or_skip
from tests.training.runs import begin, recipe_file
from xpformer.analysis import agreement
from xpformer.analysis.agreement import FINAL, GRADIENT, KINDS, LOSS, LOSSES, WEIGHT, Agreement, agree
from xpformer.analysis.subject import Subject, load_subject
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError, NonFiniteError


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(recipe_file(tmp_path_factory.mktemp("recipe"))), batch=7)


def shown(found: Agreement) -> str:
    from rich.console import Console

    console = Console(width=140, file=io.StringIO(), no_color=True)
    console.print(found.render(), *found.notes(), sep="\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("other", ["numpy:portable", "readonly", "strict", "torch"])
def test_backends_agree_in_float64(subject: Subject, other: str) -> None:
    """One step in every detail, and weights after twenty steps of AdamW with all random things on."""
    found = agree(subject, [get_backend("numpy"), backend_or_skip(other)])
    assert found.ok, [row for row in found.rows if not row.ok]
    assert found.judged() == (other,)
    assert {row.place.kind for row in found.rows} == set(KINDS)
    assert found.trajectories[other].flips == 0
    assert found.trajectories[other].predictions == 7 * 20


def test_twenty_steps_of_the_digits_agree() -> None:
    """The shipped recipe: a convolutional stem, and a key's bias whose gradient is zero but for rounding."""
    pytest.importorskip("sklearn")
    digits = load_subject("vit-digits", batch=4)
    found = agree(digits, [get_backend("numpy"), backend_or_skip("torch")])
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.parametrize("other", ["numpy:portable", "strict", "torch"])
def test_backends_are_right_in_float32(subject: Subject, other: str) -> None:
    found = agree(subject, [get_backend("numpy"), backend_or_skip(other)], dtype="float32", steps=5)
    assert found.ok, [row for row in found.rows if not row.ok]
    assert found.judged() == ("numpy", other)
    assert {row.place.kind for row in found.of("numpy")} == set(KINDS) - {LOSSES, FINAL}
    assert found.means_apart(other) < 1e-3
    assert len(found.trajectories[other].losses) == 5
    assert not any(row.error == 0.0 for row in found.of(other, GRADIENT))


def test_nothing_is_zero_in_the_step_that_is_compared(subject: Subject) -> None:
    """Else wrong backward passes would look right: the head of a ViT begins at zero."""
    trainer = subject.trainer(get_backend("numpy"), "float64")
    record = agreement._one_step(trainer, subject.general_weights("float64", 0))
    assert all(np.any(value) for place, value in record if place.kind in (GRADIENT, WEIGHT))
    names = [place.path for place, _ in record if place.kind == WEIGHT and not place.what]
    assert names == [*trainer.store.parameters]
    assert sum(place.kind == LOSS for place, _ in record) == 2  # accumulate = 2


@pytest.mark.parametrize(
    "name", ["layer_norm_without_term_3", "linear_without_dbias", "ema_with_the_rate_of_the_other_term"]
)
def test_a_wrong_pair_is_seen(subject: Subject, portable: Backend, name: str) -> None:
    for dtype in ("float64", "float32"):
        found = agree(subject, [portable, MISTAKES[name]()], dtype=dtype, steps=3)
        assert not found.ok, (name, dtype)
        assert not [row for row in found.rows if row.backend != "wrong" and not row.ok]
        assert "WRONG" in shown(found)


def test_a_backend_that_is_not_finite_is_wrong_and_says_why(subject: Subject, portable: Backend) -> None:
    def adam_step(p: np.ndarray, *others: np.ndarray, **_options: object) -> object:
        return p * np.inf, *others[1:]

    def sum_of_squares(x: np.ndarray) -> object:
        return np.float64(np.nan)

    for kernels in ({"adam_step": adam_step}, {"sum_of_squares": sum_of_squares}):
        for dtype in ("float64", "float32"):
            found = agree(subject, [portable, Wrong(kernels=kernels)], dtype=dtype, steps=3)
            assert not found.ok
            assert "not finite" in found.trajectories["wrong"].note
            assert "wrong: step" in shown(found)
            assert found.to_dict()["training"]["wrong"]["note"]
    with pytest.raises(NonFiniteError, match="the reference wrong: step 2"):
        agree(subject, [Wrong(kernels={"adam_step": adam_step}), portable], dtype="float32", steps=3)


def test_predictions_and_losses_that_differ_are_counted(subject: Subject, portable: Backend) -> None:
    def adam_step(p: np.ndarray, *others: np.ndarray, **_options: object) -> object:
        return p[::-1] * 3.0, *others[1:]

    found = agree(subject, [portable, Wrong(kernels={"adam_step": adam_step})], dtype="float32", steps=6)
    assert found.trajectories["wrong"].flips > 0
    text = " ".join(shown(found).split())
    assert "by more than 1% first in step 4" in text
    assert f"their mean differs by {found.means_apart('wrong'):.2%}" in text


def test_one_backend_and_twins_are_refused(subject: Subject, portable: Backend) -> None:
    with pytest.raises(ConfigError, match="nothing to agree with"):
        agree(subject, [portable])
    with pytest.raises(ConfigError, match="numpy:portable is named twice"):
        agree(subject, [portable, portable])


def test_a_run_brings_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin(tmp_path, seed=3)
    session.train(max_steps=8)
    loaded = load_subject(str(tmp_path / "run"))
    assert loaded.seed == 3
    assert loaded.figures == tmp_path / "run" / "figures"
    assert loaded.weights is not None
    weights = loaded.trainer(get_backend("numpy"), "float64").model.state()
    general = loaded.general_weights("float64", 5)
    assert all(np.array_equal(weights[n], general[n]) for n in weights)
    assert agree(loaded, [get_backend("numpy"), get_backend("numpy:portable")], steps=2).ok
    for given in ({"preset": "tiny"}, {"changes": ["train.lr=1"]}, {"seed": 0}):
        with pytest.raises(ConfigError, match="is a run and has its settings"):
            load_subject(str(tmp_path / "run"), **given)  # type: ignore[arg-type]


# ---- the picture ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(subject: Subject, portable: Backend) -> Agreement:
    return agree(subject, [portable, get_backend("numpy"), MISTAKES["layer_norm_without_term_3"]()], steps=2)


def test_the_picture_shows_errors_and_rings_wrong_ones(pictures: Agreement, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    from xpformer.analysis.agreement_figure import agreement_figure

    def red(found: Agreement) -> int:
        with image.open(agreement_figure(found, tmp_path / "picture.png")) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels.shape[1] == 1500
        return int((np.abs(pixels - np.array([213, 94, 0])).max(axis=-1) <= 2).sum())

    assert red(pictures) > 500
    right = tuple(row for row in pictures.rows if row.backend == "numpy")
    only = replace(pictures, rows=right, backends=pictures.backends[:2])
    one_step = {spec: replace(t, losses=t.losses[:1]) for spec, t in only.trajectories.items()}
    assert red(replace(only, trajectories=one_step)) == 0
    broken = tuple(replace(row, error=float("nan")) for row in right[:3]) + right[3:]
    assert red(replace(only, rows=broken)) > 50


def test_the_picture_of_float32(subject: Subject, portable: Backend, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from xpformer.analysis.agreement_figure import agreement_figure

    found = agree(subject, [portable, get_backend("numpy")], dtype="float32", steps=2)
    assert agreement_figure(found, tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
