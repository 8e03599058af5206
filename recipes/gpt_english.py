"""GPT on the English prose that every Python brings along, the manual behind ``help()``: no data, no download."""

from pathlib import Path

from xpformer.data.text import TextData
from xpformer.models.gpt import GPTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.text import TEXT, TextConfig, TextSettings, corpus


def recipe() -> Recipe:
    """One preset, of a few minutes; ``--data FILE`` trains the same on a text of your own."""
    settings = TextSettings(
        model=GPTConfig.preset("nanogpt-baby"),
        train=TrainConfig(
            steps=1500,
            batch_size=16,
            lr=2e-3,
            floor=0.1,
            warmup_steps=100,
            weight_decay=0.1,
            beta2=0.99,
            clip=1.0,
            ema=0.98,
            evaluate_every=250,
        ),
    )
    return Recipe(
        name="gpt-english",
        summary="GPT on the manual that comes with Python, or on a text of your own (--data FILE); no download",
        presets={"small": settings},
        default="small",
        load_data=load,
        task=TEXT,
    )


def load(file: Path | None, how: TextConfig) -> TextData:
    """The manual, or the text that ``--data`` names."""
    return corpus("prose" if file is None else "file")(file, how)


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
