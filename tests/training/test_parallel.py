"""Threads and parts: the gradients of the undivided batch, BLAS on one thread, errors passed on."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import threadpoolctl

from tests.training.runs import equal_weights
from xpformer.analysis.measure import difference, magnitude
from xpformer.backend import Backend, get_backend
from xpformer.data.augment import Augmentation
from xpformer.data.batches import ImageBatches
from xpformer.data.images import ImageData, ImageSet
from xpformer.errors import ConfigError
from xpformer.layers import Observer
from xpformer.models.vit import ViT, ViTConfig
from xpformer.rng import host_generator
from xpformer.training import TrainConfig, Trainer, parallel
from xpformer.training.environment import usable_cores
from xpformer.training.parallel import Workers, sharing_of, thread_count
from xpformer.training.trainer import evaluate
from xpformer_numpy import _share

LR, STEPS = 3e-3, 10


def image_data(train: int = 60, validation: int = 20) -> ImageData:
    def images(count: int, stream: str) -> ImageSet:
        draw = host_generator(0, stream)
        pixels, labels = draw.integers(0, 256, (count, 1, 6, 6)), draw.integers(0, 3, count)
        return ImageSet(pixels.astype(np.uint8), labels.astype(np.int64), ("a", "b", "c"))

    return ImageData("noise", images(train, "t"), images(validation, "v"), images(5, "x"), (0.5,), (0.3,))


def trainer(
    threads: int = 1,
    accumulate: int = 1,
    *,
    batch_size: int = 13,
    dtype: str = "float64",
    backend: str = "numpy",
    sharing: str | None = "batch",
    observer: Observer | None = None,
    **options: Any,
) -> Trainer:
    # with the uniform initial values every parameter has a gradient from the first step on
    model = ViT(ViTConfig.preset("tiny", init="uniform", dropout=0.2, attention_dropout=0.2, drop_path=0.3), seed=3)
    augmentation = Augmentation(shift=1, rotate=10, scale=0.1, crop_pad=1, flip=True, erase=0.5)
    batches = ImageBatches(image_data(), seed=3, batch_size=batch_size, augmentation=augmentation, dtype=dtype)
    settings = {"steps": 20, "lr": LR, "weight_decay": 0.05, "clip": 0.5, "ema": 0.9, "label_smoothing": 0.1, **options}
    config = TrainConfig(batch_size=batch_size, accumulate=accumulate, **settings)
    placed = model.to(backend, dtype)
    return Trainer(placed, batches, config, seed=3, threads=threads, sharing=sharing, observer=observer)


def gradients(t: Trainer) -> dict[str, np.ndarray]:
    return {name: t.backend.to_numpy(t.gradients[0][name]) for name in t.store.parameters}


def all_weights(t: Trainer) -> dict[str, np.ndarray]:
    return {f"{g}/{name}": a for g, tensors in t.tensors().items() for name, a in tensors.items()}


def check_weights(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    equal_weights(found, expected, LR * STEPS)


@pytest.fixture(scope="module")
def undivided() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[tuple[float, float, float]]]:
    return train()


def train(*arguments: int, **options: Any) -> tuple[dict[str, Any], dict[str, Any], list[tuple[float, float, float]]]:
    with trainer(*arguments, **options) as t:
        losses, first = [], {}
        for _ in range(STEPS):
            result = t.step()
            losses.append((result.loss, result.norm, result.accuracy))
            first = first or gradients(t)
        return first, all_weights(t), losses


@pytest.mark.parametrize(("threads", "accumulate"), [(1, 2), (2, 1), (3, 1), (2, 2), (3, 3), (13, 1), (20, 5), (1, 13)])
def test_shares_and_parts_give_the_whole(undivided: Any, threads: int, accumulate: int) -> None:
    found, weights, losses = train(threads, accumulate)
    expected, expected_weights, expected_losses = undivided
    scale = max(magnitude(g) for g in expected.values())
    assert min(magnitude(g) for name, g in expected.items()) > 1e-6 * scale
    for name, gradient in expected.items():
        assert difference(found[name], gradient) <= 1e-12 * scale, name
    check_weights(weights, expected_weights)
    assert difference(np.array(losses), np.array(expected_losses)) <= 1e-12 * magnitude(np.array(expected_losses))


@pytest.mark.parametrize("backend", ["numpy", "numpy:fast"])
@pytest.mark.parametrize(("threads", "accumulate"), [(2, 1), (3, 2)])
def test_shared_operations_give_the_whole(
    monkeypatch: pytest.MonkeyPatch, undivided: Any, backend: str, threads: int, accumulate: int
) -> None:
    monkeypatch.setattr(_share, "LEAST", 1)  # so that all rows of such a small model are shared
    found, weights, losses = train(threads, accumulate, sharing="operations", backend=backend)
    expected, expected_weights, expected_losses = undivided
    scale = max(magnitude(g) for g in expected.values())
    for name, gradient in expected.items():
        assert difference(found[name], gradient) <= 1e-12 * scale, name
    check_weights(weights, expected_weights)
    assert difference(np.array(losses), np.array(expected_losses)) <= 1e-12 * magnitude(np.array(expected_losses))


def test_shared_operations_run_in_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_share, "LEAST", 1)
    names: set[str] = set()
    product = np.matmul

    def seen(*arrays: Any, **options: Any) -> Any:
        names.add(threading.current_thread().name)
        return product(*arrays, **options)

    monkeypatch.setattr(_share.np, "matmul", seen)
    with trainer(2, sharing="operations") as t:
        assert len(t.gradients) == 1
        t.step()
    assert names == {"MainThread", "xpformer_1"}


@pytest.mark.parametrize("backend", ["numpy", "numpy:fast"])
def test_shared_operations_give_the_same_bits_each_time(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(_share, "LEAST", 1)
    first, second = (train(3, sharing="operations", backend=backend, dtype="float32") for _ in range(2))
    assert first[2] == second[2]
    for name, value in first[1].items():
        assert np.array_equal(second[1][name], value), name


def test_what_is_shared_follows_from_bytes() -> None:
    large = parallel.LARGE
    assert sharing_of(large, 2 * large - 1, 2) == "operations"
    assert sharing_of(large, 2 * large, 2) == "batch"
    assert sharing_of(large - 1, 0, 2) == "batch"
    assert sharing_of(large, 0, 1) == "batch"
    with pytest.raises(ConfigError, match="unknown sharing 'batches'; did you mean 'batch'"):
        trainer(2, sharing="batches")
    with pytest.raises(ConfigError, match="backend numpy:portable cannot share operations; leave out --sharing"):
        trainer(2, sharing="operations", backend="numpy:portable")


@pytest.mark.parametrize(("large", "expected"), [(1, "operations"), (1 << 40, "batch")])
def test_the_trainer_chooses_by_what_a_sample_keeps(monkeypatch: pytest.MonkeyPatch, large: int, expected: str) -> None:
    monkeypatch.setattr(parallel, "LARGE", large)
    asked = []
    choose = parallel.sharing_of

    def watched(gradients: int, activations: int, threads: int) -> str:
        asked.append((gradients, activations, threads))
        return choose(gradients, 0, threads)

    monkeypatch.setattr("xpformer.training.trainer.sharing_of", watched)
    with trainer(3, sharing=None) as t:
        assert t.sharing == expected
        assert len(t.gradients) == (1 if expected == "operations" else 3)
        size = sum(p.size for p in t.store.parameters.values())
        assert asked[0][0] == 8 * size
        assert asked[0][2] == 3
        if expected == "operations":  # else the gradients alone decide, and nothing is run
            assert asked[1][1] % t.batches.batch_size == 0
            assert asked[1][1] > 13 * 8 * 10


def test_the_masks_and_augmentation_matter() -> None:
    """Else the test above would hold for a loop that draws none."""
    parts = [gradients_of(seed) for seed in (3, 4)]
    assert any(difference(parts[0][k], parts[1][k]) > 1e-3 * magnitude(parts[0][k]) for k in parts[0])


def gradients_of(seed: int) -> dict[str, np.ndarray]:
    t = trainer()
    t.seed = seed  # of the masks alone: the batches keep theirs
    t.step()
    return gradients(t)


@pytest.mark.parametrize("threads", [2, 5])
def test_a_batch_smaller_than_the_threads(threads: int) -> None:
    one, many = train(1, batch_size=1), train(threads, batch_size=1)
    check_weights(many[1], one[1])
    assert [x[0] for x in one[2]] == pytest.approx([x[0] for x in many[2]], rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_threads_give_the_same_bits(dtype: str) -> None:
    first, second = (train(3, 2, dtype=dtype) for _ in range(2))
    assert first[2] == second[2]
    for name, value in first[1].items():
        assert np.array_equal(second[1][name], value), name


@pytest.mark.parametrize("backend", ["numpy", "numpy:portable"])
@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", 0.0), ("adam", 0.0), ("adamw", 0.9)])
def test_optimizers_and_averages_update_in_parts(backend: str, optimizer: str, ema: float) -> None:
    one, many = (train(n, backend=backend, optimizer=optimizer, ema=ema) for n in (1, 3))
    check_weights(many[1], one[1])


def test_evaluation_does_not_depend_on_the_threads() -> None:
    t = trainer(dtype="float32")
    t.step()
    results = []
    for threads in (1, 2, 3):
        with Workers(t.backend, threads) as workers, pytest.MonkeyPatch.context() as patch:
            patch.setattr("xpformer.data.batches.ImageBatches.evaluation_batch", 6)
            results.append(evaluate(t.model, t.batches, "validation", workers))
    for result in results[1:]:
        assert result.loss == results[0].loss
        assert np.array_equal(result.probabilities, results[0].probabilities)


# ---- BLAS -----------------------------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads() -> Any:
    if not blas_threads():
        pytest.skip("no BLAS that threadpoolctl knows")
    parallel._controller.cache_clear()  # a test before this one may have loaded a library with a BLAS of its own
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS has one thread only")
        yield


class Ask(Observer):
    """Asks BLAS for its threads, and fails in some operation."""

    def __init__(self, fail: bool = False) -> None:
        self.found: set[int] = set()
        self.fail = fail

    def forward(self, path: str, *_args: Any) -> None:
        if path.endswith("norm2") or self.fail:
            self.found |= blas_threads()
        if self.fail:
            raise RuntimeError("on purpose")


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_works_on_one_thread_inside_a_step(two_blas_threads: None, threads: int) -> None:
    observer = Ask()
    with trainer(threads, observer=observer) as t:
        t.step()
        assert observer.found == {1}
        assert blas_threads() == {2}
        t.observer = Ask(fail=True)
        with pytest.raises(RuntimeError, match="on purpose"):
            t.step()
        assert t.observer.found == {1}  # type: ignore[attr-defined]
        assert blas_threads() == {2}
        t.observer = None
        assert t.step().step == 2  # the failed one did not count


@pytest.mark.parametrize("fail", [False, True])
def test_blas_works_on_one_thread_inside_an_evaluation(two_blas_threads: None, fail: bool) -> None:
    found: set[int] = set()

    def between() -> None:
        found.update(blas_threads())
        if fail:
            raise RuntimeError("on purpose")

    t = trainer()
    before = all_weights(t)
    if fail:
        with pytest.raises(RuntimeError, match="on purpose"):
            t.evaluate(between=between)
    else:
        t.evaluate(between=between)
    assert found == {1}
    assert blas_threads() == {2}
    assert all(np.array_equal(a, before[n]) for n, a in all_weights(t).items())


def test_a_library_with_its_own_threads_keeps_them(two_blas_threads: None) -> None:
    observer = Ask()
    pytest.importorskip("array_api_strict")
    t = trainer(backend="strict", observer=observer)
    t.step()
    assert observer.found == {2}


# ---- workers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def numpy() -> Backend:
    return get_backend("numpy")


def test_results_come_in_order_from_several_threads(numpy: Backend) -> None:
    def task(i: int) -> tuple[int, str]:
        time.sleep(0.01 * (4 - i))
        return i, threading.current_thread().name

    with Workers(numpy, 4) as workers:
        results = workers.run([lambda i=i: task(i) for i in range(4)])
    assert [i for i, _ in results] == [0, 1, 2, 3]
    assert len({name for _, name in results}) == 4
    assert {name.split("_")[0] for _, name in results} == {"MainThread", "xpformer"}
    with Workers(numpy, 1) as workers:
        assert workers.run([threading.current_thread]) == [threading.main_thread()]


def test_the_first_error_is_raised_when_all_have_ended(numpy: Backend) -> None:
    ended = []

    def slow() -> None:
        time.sleep(0.05)
        ended.append(True)

    def fail(text: str) -> None:
        raise ValueError(text)

    with Workers(numpy, 3) as workers:
        with pytest.raises(ValueError, match="first"):
            workers.run([lambda: fail("first"), slow, lambda: fail("second")])
        assert ended == [True]
        assert workers.run([lambda: 1, lambda: 2]) == [1, 2]


def test_threads_end_with_the_workers_and_begin_again(numpy: Backend) -> None:
    def mine() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("xpformer")]

    before = mine()
    workers = Workers(numpy, 2)
    for _ in range(2):
        with workers:
            workers.run([lambda: None] * 4)
            assert len(mine()) > len(before)
        assert mine() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_numpy_does_not_warn_inside(numpy: Backend, threads: int) -> None:
    with Workers(numpy, threads) as workers:
        assert np.isinf(workers.run([lambda: np.float32(1e38) * np.float32(10)] * 2)).all()
    with pytest.raises(RuntimeWarning, match="overflow"):
        np.float32(1e38) * np.float32(10)


def test_thread_count(numpy: Backend) -> None:
    assert thread_count(numpy, None) == usable_cores() >= 1
    assert thread_count(numpy, 7) == 7
    for threads in (0, -1):
        with pytest.raises(ConfigError, match=rf"threads = {threads} is less than 1"):
            thread_count(numpy, threads)
    with pytest.raises(ConfigError, match="threads = 100000 is more than 1024"):
        thread_count(numpy, 100_000)
    pytest.importorskip("array_api_strict")
    strict = get_backend("strict")
    assert thread_count(strict, None) == thread_count(strict, 1) == 1
    with pytest.raises(
        ConfigError, match="backend strict runs each operation in parallel itself; leave out --threads 2"
    ):
        thread_count(strict, 2)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_evaluation_has_the_same_bits_whatever_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which thread takes which samples is chance: the calling thread must not compute in another way."""
    monkeypatch.setattr(_share, "LEAST", 1)
    monkeypatch.setattr("xpformer.data.batches.ImageBatches.evaluation_batch", 3)
    shared: list[int] = []
    parts = _share.parts
    monkeypatch.setattr(_share, "parts", lambda *a: shared.append(1) or parts(*a))
    with trainer(2, sharing="operations", dtype="float32") as t:
        t.evaluate()
        assert not shared
        t.step()
        assert shared


def test_an_interrupt_while_waiting_leaves_nothing_behind(numpy: Backend) -> None:
    ended: list[bool] = []

    def slow() -> None:
        time.sleep(0.2)
        ended.append(True)

    with Workers(numpy, 2) as workers:
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            workers.run([slow, slow, slow])
        assert len(ended) >= 2
        names = workers.run([lambda: (time.sleep(0.05), threading.current_thread().name)[1]] * 2)
        assert len(set(names)) == 2


def test_steps_of_two_trainers_that_overlap_leave_blas_as_it_was(two_blas_threads: None, numpy: Backend) -> None:
    first, second = Workers(numpy, 1).step(), Workers(numpy, 1).step()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert blas_threads() == {1}
    second.__exit__(None, None, None)
    assert blas_threads() == {2}


def test_portable_pairs_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xpformer.training.trainer.sharing_of", lambda *_: "operations")
    with trainer(2, sharing=None, backend="numpy:portable") as t:
        assert t.sharing == "batch"
