"""A trained Swin goes on learning, on the pictures of a folder: ``--from DIR --data folder:DIR``."""

from dataclasses import replace

from xpformer.data import Augmentation
from xpformer.data.preprocess import Preprocessor
from xpformer.models.swin import SwinConfig
from xpformer.models.tuning import Tuning
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import DataConfig, Recipe
from xpformer.training.tasks.finetune import SWIN_FOLDER, SwinFolderSettings, folder_data


def recipe() -> Recipe:
    """``full``: all learns, lower blocks slower; ``lora``: low-rank differences and the head; ``head``: that alone."""
    full = SwinFolderSettings(
        model=SwinConfig.preset("tiny"),  # until the trained one is known, as the preprocessor
        preprocessor=Preprocessor.of_swin(9, 2),
        train=TrainConfig(epochs=10, batch_size=32, lr=5e-4, warmup_steps=10, weight_decay=0.05, clip=1.0),
        augmentation=Augmentation(),  # what a picture may suffer depends on what it shows: --set augmentation.flip=true
        data=DataConfig(validation=0),
        tuning=Tuning(lr_decay=0.8),
    )
    lora = replace(
        full,
        train=replace(full.train, lr=2e-3),
        tuning=Tuning(lora=("*.attention.*", "*.mlp.*")),
    )
    head = replace(full, train=replace(full.train, lr=1e-2, weight_decay=0.0), tuning=Tuning(freeze=("*", "!head")))
    return Recipe(
        name="swin-finetune",
        summary="a trained Swin goes on, on a folder of pictures: --from DIR --data folder:DIR",
        presets={"full": full, "lora": lora, "head": head},
        default="full",
        load_data=folder_data,
        task=SWIN_FOLDER,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
