from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    *("numpy", "scipy", "sklearn", "matplotlib", "PIL", "rich", "tokenizers", "safetensors", "msgspec", "pooch"),
    *("threadpoolctl", "torch", "jax", "cupy", "numba", "array_api_compat", "array_api_strict", "transformers"),
}


def loaded(*arguments: str) -> set[str]:
    """The modules that the command line has imported when it ends."""
    code = (
        "import atexit, json, sys; from xpformer.cli import main;"
        "atexit.register(lambda: print(json.dumps([*sys.modules]), file=sys.stderr)); main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["profile", "--help"]], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = loaded(*arguments)
    assert not {name.partition(".")[0] for name in modules} & HEAVY
    assert not [
        name for name in modules if name.startswith(("xpformer.layers", "xpformer.training", "xpformer.analysis"))
    ]


def test_training_on_the_digits_imports_no_other_array_library_before_the_first_step() -> None:
    """Pictures, tokenizers and scikit-learn, half a second each, are for those who use them."""
    code = (
        "import json, sys; from xpformer.backend import get_backend;"
        "from xpformer.training.recipe import find_recipe, load_recipe;"
        "from xpformer.training.session import Options, make_trainer;"
        "recipe = load_recipe(find_recipe('vit-digits')); settings = recipe.settings(None, ['dim=16']);"
        "data = recipe.read_data(None, settings, 0);"
        "trainer = make_trainer(recipe, settings, Options(), get_backend('numpy'), data);"
        "trainer.step(); print(json.dumps([*sys.modules]))"
    )
    pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = {"numpy", "safetensors", "msgspec", "threadpoolctl", "array_api_compat", "numba"}
    assert not {name.partition(".")[0] for name in json.loads(done.stdout)} & (HEAVY - needed)
