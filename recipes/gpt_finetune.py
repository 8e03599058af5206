"""A trained GPT goes on learning, on a text of your own: ``--from DIR --text FILE``."""

from dataclasses import replace

from xpformer.models.gpt import GPTConfig
from xpformer.models.tuning import Tuning
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.finetune import TUNED_TEXT
from xpformer.training.tasks.text import TextConfig, TextSettings, corpus


def recipe() -> Recipe:
    """``full``: all of it; ``lora``: low-rank differences of the attention's maps."""
    full = TextSettings(
        model=GPTConfig.preset("tiny"),  # until the trained one is known
        train=TrainConfig(epochs=3, batch_size=8, lr=2e-4, warmup_steps=20, weight_decay=0.1, beta2=0.99, clip=1.0),
        data=TextConfig(samples=3),
    )
    lora = replace(full, train=replace(full.train, lr=1e-3), tuning=Tuning(lora=("blocks.*.attention.*",)))
    return Recipe(
        name="gpt-finetune",
        summary="a trained GPT goes on, on a text of your own: --from DIR --text FILE",
        presets={"full": full, "lora": lora},
        default="full",
        load_data=corpus("file"),
        task=TUNED_TEXT,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
