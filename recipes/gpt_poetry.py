"""GPT on classical Chinese poems, character by character."""

from dataclasses import replace

from xpformer.models.gpt import GPTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.text import TEXT, TextConfig, TextSettings, corpus


def recipe() -> Recipe:
    """``small``: stops where the held-out poems are predicted best; ``reference``: its model and rate, which learns
    its 171,355 characters by heart, with the held-out loss beside it to show that.
    """
    train = TrainConfig(
        steps=3000,
        batch_size=32,
        lr=1e-3,
        floor=0.1,
        warmup_steps=100,
        weight_decay=0.1,
        beta2=0.99,
        clip=1.0,
        evaluate_every=100,
        patience=5,
    )
    model = GPTConfig(vocabulary=2350, depth=2, bias=False, dropout=0.3, embedding_dropout=0.3, attention_dropout=0.1)
    reference = replace(train, steps=600, batch_size=64, lr=3e-4, floor=1.0, weight_decay=0.0, evaluate_every=50)
    data = TextConfig(windows="sentences", sample_tokens=100)
    return Recipe(
        name="gpt-poetry",
        summary="GPT on classical Chinese poems, by characters; stops at the best held-out loss",
        presets={
            "small": TextSettings(model, train, data),
            "reference": TextSettings(GPTConfig.preset("seed"), replace(reference, patience=0), data),
        },
        default="small",
        load_data=corpus("poems"),
        task=TEXT,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
