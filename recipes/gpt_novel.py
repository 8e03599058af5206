"""GPT on a long English novel, The Count of Monte Cristo, character by character."""

from xpformer.models.gpt import GPTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.text import TEXT, TextSettings, corpus


def recipe() -> Recipe:
    """One preset, a quarter of an hour on two cores; it stops where the held-out chapters are predicted best."""
    settings = TextSettings(
        model=GPTConfig.preset("nanogpt-baby", vocabulary=91, context=128),
        train=TrainConfig(
            steps=4000,
            batch_size=16,
            lr=3e-3,
            floor=0.1,
            warmup_steps=100,
            weight_decay=0.1,
            beta2=0.99,
            clip=1.0,
            ema=0.99,
            evaluate_every=500,
            patience=3,
        ),
    )
    return Recipe(
        name="gpt-novel",
        summary="GPT on The Count of Monte Cristo, by characters; stops at the best held-out loss",
        presets={"small": settings},
        default="small",
        load_data=corpus("novel"),
        task=TEXT,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
