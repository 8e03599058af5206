"""What each part of a GPT is worth: one model, seven presets, each a part more than the one before.

The ladder is that of Andrej Karpathy's lecture "Let's build GPT: from scratch, in code, spelled out" (2023), on the
same text: train each rung, and see the validation loss fall.
"""

from dataclasses import replace

from xpformer.models.gpt import GPTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.recipe import Recipe
from xpformer.training.tasks.text import TEXT, TextSettings, corpus


def recipe() -> Recipe:
    """From pairs of characters to four whole blocks, all with the same steps and width."""
    bigram = GPTConfig(
        context=32,
        dim=64,
        depth=0,
        heads=1,
        activation="relu",
        norm="none",
        mlp=False,
        residual=False,
        positions="none",
        head="free",
        init="uniform",
    )
    attention = replace(bigram, depth=1, positions="learned")
    heads = replace(attention, heads=4)
    mlp = replace(heads, mlp=True)
    residual = replace(mlp, residual=True)
    norm = replace(residual, norm="layer_norm", init="gpt2")  # norms allow small initial values
    depth = replace(norm, depth=4)
    train = TrainConfig(
        steps=1000, batch_size=32, lr=2e-3, floor=0.1, warmup_steps=50, beta2=0.99, clip=1.0, evaluate_every=250
    )
    rungs = {
        "bigram": bigram,
        "attention": attention,
        "heads": heads,
        "mlp": mlp,
        "residual": residual,
        "norm": norm,
        "depth": depth,
    }
    return Recipe(
        name="gpt-ladder",
        summary="GPT part by part on Shakespeare's plays: each preset has one part more, and a lower loss",
        presets={name: TextSettings(model, train) for name, model in rungs.items()},
        default="depth",
        load_data=corpus("shakespeare"),
        task=TEXT,
    )


if __name__ == "__main__":
    from xpformer.cli import run_recipe

    run_recipe(__file__)
