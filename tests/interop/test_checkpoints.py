"""A checkpoint of a run is a directory of Hugging Face's, where its model is one of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoImageProcessor, AutoTokenizer, GPT2LMHeadModel, ViTForImageClassification

import xpformer
from tests.interop import theirs
from tests.training.runs import STEPS, begin, outcome
from xpformer.analysis.measure import HUGGING_FACE, equal
from xpformer.generation import Sampling, generate
from xpformer.training import checkpoint
from xpformer.training.predict import model_input
from xpformer.training.recipe import list_recipes
from xpformer.training.session import resume, start
from xpformer.training.trained import load_trained

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_best_of_a_run_opens_in_transformers(tmp_path: Path, dtype: str) -> None:
    session = begin(tmp_path, *STEPS, dtype=dtype)
    session.train()
    best, trained = session.run.checkpoints / "best", load_trained(session.run.path)
    model = theirs.reopen(best, ViTForImageClassification)
    assert model.dtype == getattr(torch, dtype)
    assert model.config.id2label == {0: "top", 1: "middle", 2: "bottom"}
    pixels = trained.data().validation.images[:5]
    prepare = AutoImageProcessor.from_pretrained(best)
    images = prepare([*pixels], return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    ours = model_input(trained, pixels)
    assert equal("pixels", images.numpy(), ours, HUGGING_FACE["float32"]).ok
    expected = theirs.logits(model, torch.from_numpy(ours))
    assert equal("logits", trained.model(ours), expected, HUGGING_FACE[dtype]).ok
    loaded = xpformer.load(best)
    assert loaded.config == trained.settings.model
    assert np.array_equal(loaded(ours), trained.model(ours))


def test_the_best_of_a_language_model_opens_in_transformers(tmp_path: Path) -> None:
    changes = ("model.positions=learned", "model.mlp_first=false", "model.head=tied", "model.dim=24", "train.steps=4")
    session = start(
        "gpt-alphabet",
        begin_options(tmp_path),
        changes=(*changes, "train.evaluate_every=2", "data.samples=0"),
    )
    session.train()
    best, trained = session.run.checkpoints / "best", load_trained(session.run.path)
    model, tokenizer = theirs.reopen(best, GPT2LMHeadModel), AutoTokenizer.from_pretrained(best)
    prompt = tokenizer("ab", return_tensors="pt")["input_ids"]
    found = tokenizer.decode(model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)[0])
    (ours,) = generate(trained.model, trained.tokenizer, ["ab"], tokens=3, sampling=Sampling(temperature=0))
    assert found == "ab" + ours.text


def begin_options(folder: Path) -> Any:
    from xpformer.training.session import Options

    return Options(threads=1, out=folder / "run")


def test_checkpoints_of_before_are_read_and_go_on(tmp_path: Path) -> None:
    """Their weights have our names, and config.json our model_type."""
    session = begin(tmp_path, *STEPS)
    session.train()
    expected = outcome(session.run)
    other = begin(tmp_path, *STEPS, name="old")
    other.train(max_steps=3)
    saved, _ = checkpoint.newest(other.run.checkpoints)
    trained = load_trained(other.run.path, step=3)
    old = {"model_type": "xpformer-vit", "xpformer_version": "0.1.0", "class_names": ["top", "middle", "bottom"]}
    model = json.loads(json.dumps(vars(trained.settings.model)))
    del model["hidden_dropout"]  # did not exist
    documents = {n: d for n, d in saved.documents.items() if n != "preprocessor_config.json"}
    tensors = {**saved.tensors, "model": trained.model.state()}
    checkpoint.save(
        other.run.checkpoints, 3, tensors=tensors, documents={**documents, "config.json": old | model}, best=True
    )
    assert load_trained(other.run.path).class_names == ("top", "middle", "bottom")
    assert xpformer.load(other.run.checkpoints / "best").config == trained.settings.model
    again, notes = resume(other.run.path)
    assert not notes
    again.train()
    found = outcome(other.run)
    assert found["arrays"] == expected["arrays"]


def test_the_preset_hf_has_no_option_that_they_lack() -> None:
    from xpformer.interop.families import is_own
    from xpformer.training.recipe import load_recipe

    settings = load_recipe(list_recipes()["vit-mnist"]).settings("hf")
    assert (settings.model.pool, settings.model.embedding, settings.model.activation) == ("token", "flatten", "gelu")
    assert not is_own(settings.model)
