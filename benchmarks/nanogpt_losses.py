"""Whether training nanoGPT's model for a GPU (6 blocks, 6 heads, width 384, context 256) gives torch's losses.

    python benchmarks/nanogpt_losses.py [--steps 100] [--batch 2] [--data FOLDER]

The recipe's own trainer on NumPy, and torch with autograd and its own AdamW: the same weights, seed, batches, learning
rates, decay and clipping, in float64, without dropout (whose masks torch draws its own way).  The exit status is 1 if
a loss differs by more than the bound of the tests.  Some minutes on a laptop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the models that the tests compare with

from tests.models import torch_gpt, torch_vit
from xpformer.analysis.measure import TORCH
from xpformer.backend import get_backend
from xpformer.training.recipe import find_recipe, load_recipe
from xpformer.training.session import Options, make_trainer


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    recipe = load_recipe(find_recipe("gpt-shakespeare"))
    still = [f"model.{name}=0" for name in ("dropout", "embedding_dropout", "attention_dropout")]
    settings = recipe.settings("nanogpt", [*still, f"train.batch_size={arguments.batch}"])
    data = recipe.read_data(arguments.data, settings, 0)
    trainer = make_trainer(recipe, settings, Options(dtype="float64"), get_backend("numpy"), data)
    named, how = trainer.model.named_parameters(), settings.train
    p = torch_vit.parameters(trainer.model.state())
    groups = [
        {"params": [t for n, t in p.items() if named[n].decay is on], "weight_decay": how.weight_decay * on}
        for on in (True, False)
    ]
    theirs = torch.optim.AdamW(groups, lr=how.lr, betas=(how.beta1, how.beta2), eps=how.eps)
    worst = 0.0
    with trainer:
        for step in range(arguments.steps):
            ids, targets = (torch.tensor(x) for x in trainer.batches.train(step, 0, arguments.batch))
            for group in theirs.param_groups:
                group["lr"] = trainer.schedule(step)
            theirs.zero_grad()
            logits = torch_gpt.forward(p, trainer.model.config, ids)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(p.values()), how.clip)
            theirs.step()
            ours = trainer.step().loss
            worst = max(worst, abs(ours - loss.item()) / loss.item())
            if step % 10 == 9:
                print(f"step {step + 1}: loss {ours:.12f}, torch {loss.item():.12f}, worst {worst:.1e}", flush=True)
    right = worst <= TORCH and bool(np.isfinite(worst))
    print(f"{arguments.steps} steps: {'equal' if right else 'NOT equal'} to {TORCH:.0e}; worst {worst:.1e}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
