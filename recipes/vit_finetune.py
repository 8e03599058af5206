"""A trained ViT goes on learning, on the pictures of a folder: ``--from DIR --data folder:DIR``."""

from dataclasses import replace

from xpformer.data import Augmentation
from xpformer.data.preprocess import Preprocessor
from xpformer.models.tuning import Tuning
from xpformer.models.vit import ViTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import DataConfig, Recipe
from xpformer.training.tasks.finetune import FOLDER, FolderSettings, folder_data


def recipe() -> Recipe:
    """``full``: all learns, lower blocks slower; ``lora``: low-rank differences and the head; ``head``: that alone."""
    full = FolderSettings(
        model=ViTConfig.preset("tiny"),  # until the trained one is known, as the preprocessor
        preprocessor=Preprocessor.of_vit(6, 1),
        train=TrainConfig(epochs=10, batch_size=32, lr=5e-4, warmup_steps=10, weight_decay=0.05, clip=1.0),
        augmentation=Augmentation(),  # what a picture may suffer depends on what it shows: --set augmentation.flip=true
        data=DataConfig(validation=0),
        tuning=Tuning(lr_decay=0.75),
    )
    lora = replace(
        full,
        train=replace(full.train, lr=2e-3),
        tuning=Tuning(lora=("blocks.*.attention.*", "blocks.*.mlp.*")),
    )
    head = replace(full, train=replace(full.train, lr=1e-2, weight_decay=0.0), tuning=Tuning(freeze=("*", "!head")))
    return Recipe(
        name="vit-finetune",
        summary="a trained ViT goes on, on a folder of pictures: --from DIR --data folder:DIR",
        presets={"full": full, "lora": lora, "head": head},
        default="full",
        load_data=folder_data,
        task=FOLDER,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
