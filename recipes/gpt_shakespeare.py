"""GPT on the plays of Shakespeare, character by character: the text of char-rnn and nanoGPT, and their settings."""

from dataclasses import replace

from xpformer.models.gpt import GPTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.text import TEXT, TextSettings, corpus


def recipe() -> Recipe:
    """``nanogpt-baby``, ``nanogpt``: nanoGPT's own settings; ``quarter``: the best in a quarter of an hour."""
    baby = TrainConfig(  # nanoGPT's README, "I only have a macbook": 2,000 steps on a CPU
        steps=2000,
        batch_size=12,
        lr=1e-3,
        floor=0.1,
        warmup_steps=100,
        weight_decay=0.1,
        beta2=0.99,
        clip=1.0,
        evaluate_every=250,
        checkpoint_every=250,
    )
    quarter = replace(
        baby, steps=3000, batch_size=32, lr=2e-3, weight_decay=0.1, ema=0.99, evaluate_every=250, checkpoint_every=250
    )
    large = replace(baby, steps=5000, batch_size=64)
    return Recipe(
        name="gpt-shakespeare",
        summary="GPT on Shakespeare's plays, by characters",
        presets={
            "nanogpt-baby": TextSettings(GPTConfig.preset("nanogpt-baby"), baby),
            "quarter": TextSettings(
                GPTConfig.preset("nanogpt-baby", context=128, dim=192, heads=6, dropout=0.1), quarter
            ),
            "nanogpt": TextSettings(GPTConfig.preset("nanogpt"), large),
        },
        default="nanogpt-baby",
        load_data=corpus("shakespeare"),
        task=TEXT,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
