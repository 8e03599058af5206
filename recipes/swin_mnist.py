"""Swin on MNIST: 55,000 images to train, 5,000 to choose, 10,000 to test."""

from dataclasses import replace
from pathlib import Path

from xpformer.data import Augmentation, ImageData, load_mnist
from xpformer.models.swin import SwinConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe, SwinSettings, SwinTask


def load(folder: Path | None, validation: int, seed: int) -> ImageData:
    """MNIST from ``--data``, ``$XPFORMER_DATA``, the user cache or the network."""
    return load_mnist(folder, validation=validation, seed=seed)


def recipe() -> Recipe:
    """``small``: a convolutional stem before the windows, the most accurate; ``quick``: the same for a few minutes;
    ``patches``: the paper's own embedding, which opens in transformers.
    """
    small = SwinSettings(
        model=SwinConfig.preset("mnist-stem"),
        train=TrainConfig(
            batch_size=128, lr=3e-3, warmup_steps=215, weight_decay=0.05, beta2=0.99, clip=1.0, epochs=16, ema=0.998
        ),
        augmentation=Augmentation(shift=2, rotate=12, scale=0.12),
    )
    quick = replace(small, train=replace(small.train, epochs=4, ema=0.995))
    patches = replace(small, model=SwinConfig.preset("mnist"))
    return Recipe(
        name="swin-mnist",
        summary="Swin on MNIST",
        presets={"small": small, "quick": quick, "patches": patches},
        default="small",
        load_data=load,
        figures="test accuracy, mean of 3 seeds: small 99.51 %",
        task=SwinTask(),
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
