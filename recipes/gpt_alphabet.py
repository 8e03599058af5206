"""The smallest language model: a GPT of one block learns the alphabet in seconds."""

from xpformer.models.gpt import GPTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.text import TEXT, TextConfig, TextSettings, corpus


def recipe() -> Recipe:
    """The reference's model: one block with the MLP before attention, a context of five characters."""
    settings = TextSettings(
        model=GPTConfig.preset("alphabet"),
        train=TrainConfig(steps=200, batch_size=16, lr=1e-3, warmup_steps=20, clip=1.0, evaluate_every=50),
        data=TextConfig(samples=20, sample_tokens=40),
    )
    return Recipe(
        name="gpt-alphabet",
        summary="GPT of one block on the alphabet; no data, seconds: generate RUN --prompt m",
        presets={"reference": settings},
        default="reference",
        load_data=corpus("alphabet"),
        task=TEXT,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
