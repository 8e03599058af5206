"""GPT on the plays of Shakespeare, character by character: the text of char-rnn and nanoGPT, and their settings."""

from dataclasses import replace

from xpformer.models.gpt import GPTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.text import TEXT, TextSettings, corpus


def recipe() -> Recipe:
    """``nanogpt-baby`` and ``nanogpt`` are nanoGPT's own; ``quarter`` is for a quarter of an hour on two cores."""
    baby = TrainConfig(  # of its README, for a CPU: 2,000 steps, the rate down to a tenth
        steps=2000,
        batch_size=12,
        lr=1e-3,
        floor=0.1,
        warmup_steps=100,
        weight_decay=0.1,
        beta2=0.99,
        clip=1.0,
        evaluate_every=250,
    )
    modern = GPTConfig.preset(  # as Llama has it
        "nanogpt-baby", context=128, positions="rotary", norm="rms_norm", activation="swiglu", hidden=344
    )
    quarter = replace(baby, steps=5000, batch_size=16, lr=3e-3, ema=0.997, evaluate_every=500)
    return Recipe(
        name="gpt-shakespeare",
        summary="GPT on Shakespeare's plays, by characters",
        presets={
            "nanogpt-baby": TextSettings(GPTConfig.preset("nanogpt-baby"), baby),
            "quarter": TextSettings(modern, quarter),
            "nanogpt": TextSettings(GPTConfig.preset("nanogpt"), replace(baby, steps=5000, batch_size=64)),
        },
        default="nanogpt-baby",
        load_data=corpus("shakespeare"),
        figures="validation loss, mean of 3 seeds: nanogpt-baby 1.904, quarter 1.475",
        task=TEXT,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
