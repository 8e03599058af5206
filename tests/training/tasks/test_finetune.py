"""Runs that go on from trained models: of transformers, of ours; resumed, evaluated, exported, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.runs import begin, differences, outcome
from tests.training.tasks import test_text
from xpformer import load
from xpformer.analysis.measure import HUGGING_FACE, equal, same_bits
from xpformer.data.images import normalize
from xpformer.data.preprocess import Preprocessor
from xpformer.data.tokenizers import BytePairs
from xpformer.errors import CheckpointError, ConfigError, DataError
from xpformer.generation import generate
from xpformer.interop.pretrained import open_assets
from xpformer.models.tuning import merged_state
from xpformer.rng import host_generator
from xpformer.training.session import Options, Session, resume, start
from xpformer.training.trained import evaluate_run, load_trained

pytestmark = pytest.mark.usefixtures("no_fsync")

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

TEXT = "".join("abc de.\n"[i] for i in host_generator(0, "text").integers(0, 8, 600))
FEW = ("steps=6", "batch_size=4", "evaluate_every=3", "warmup_steps=0")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of coloured pictures of odd sizes, told apart by their brightness."""
    folder, draw = tmp_path_factory.mktemp("pictures"), host_generator(0, "pictures")
    for name, shade in (("dark", 0), ("light", 150)):
        (folder / name).mkdir()
        for i in range(12):
            pixels = draw.integers(shade, shade + 100, (17 + i, 23, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of transformers, with a processor."""
    transformers = pytest.importorskip("transformers")
    from tests.interop import theirs

    folder = theirs.save(theirs.vit(num_channels=3), tmp_path_factory.mktemp("vit"))
    how = {"size": {"height": 15, "width": 15}, "resample": 3, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    transformers.ViTImageProcessor(**how).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of transformers with GPT-2's two files, and a model that has one id more than they."""
    pytest.importorskip("transformers")
    from tests.interop import theirs

    tokenizer = BytePairs.train(TEXT, 270)
    model = theirs.gpt2(vocab_size=tokenizer.size + 1)
    folder = theirs.save(model, tmp_path_factory.mktemp("gpt"))
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(tokenizer.vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in tokenizer.merges))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def tuned(recipe: str, source: Path | None, data: Path | None, out: Path, *changes: str, **options: Any) -> Session:
    preset = options.pop("preset", None)
    how = Options(threads=1, start_from=source, data=data, out=out, **options)
    return start(recipe, how, preset=preset, changes=[*FEW, *changes])


@pytest.mark.parametrize("preset", ["full", "lora", "head"])
def test_a_vit_of_transformers(vit: Path, pictures: Path, tmp_path: Path, preset: str) -> None:
    import torch

    from tests.interop import theirs

    rank = ("rank=2",) if preset == "lora" else ()
    session = tuned("vit-finetune", vit, pictures, tmp_path / "run", *rank, preset=preset)
    assert session.notes == ["a new head of 2 classes in place of the old one of 7"]
    assert session.settings.model.classes == 2
    assert session.settings.preprocessor == Preprocessor((15, 15), "bicubic", mean=(0.4,) * 3, std=(0.3,) * 3)
    model, before = session.trainer.model, load(vit).state()
    assert (model.count_parameters(trainable=True) < model.count_parameters()) == (preset != "full")
    assert session.train() == "finished"
    after = merged_state(model)
    moved = {n.partition(".")[0] for n, a in after.items() if n in before and not np.array_equal(a, before[n])}
    everything = {"embedding", "token", "positions", "blocks", "norm", "head"}
    assert moved == {"full": everything, "lora": {"blocks", "head"}, "head": {"head"}}[preset]

    trained = load_trained(tmp_path / "run")
    assert trained.class_names == ("dark", "light")
    result = evaluate_run(trained, None, session.data)
    assert (result.split, result.count) == ("validation", 2)
    picture = trained.task.picture(trained.settings, pictures / "dark" / "3.png")
    assert np.array_equal(picture, session.settings.preprocessor.read(pictures / "dark" / "3.png", 3))
    inverted = trained.task.picture(trained.settings, pictures / "dark" / "3.png", invert=True)
    assert np.array_equal(inverted, 255 - picture)

    trained.model.save_pretrained(tmp_path / "out")
    theirs_again = theirs.reopen(tmp_path / "out", theirs.ViTForImageClassification)
    x = normalize(picture[None], (0.4,) * 3, (0.3,) * 3)
    found = trained.model.backend.to_numpy(trained.model(x))
    assert equal("logits", found, theirs.logits(theirs_again, torch.tensor(x)), HUGGING_FACE["float32"]).ok


def test_another_image_size_and_the_same_classes(vit: Path, pictures: Path, tmp_path: Path) -> None:
    first = tuned("vit-finetune", vit, pictures, tmp_path / "first")
    first.train()
    again = tuned("vit-finetune", tmp_path / "first", pictures, tmp_path / "again", "image_size=25", "validation=4")
    assert again.notes == ["positions interpolated from 3 x 3 to 5 x 5 patches"]  # and the head stays
    assert again.data.image_shape == (3, 25, 25)
    assert len(again.data.validation) == 4
    best = load_trained(tmp_path / "first").model.state()
    head = again.trainer.model.state()["head.output.weight"]
    assert same_bits("head", head, best["head.output.weight"]).ok
    again.train()
    how = load_trained(tmp_path / "again").preprocessor
    assert (how["image_shape"], how["resize"], how["resample"]) == ([3, 25, 25], [25, 25], "bicubic")


SIZES: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = {
    "the model's": ((), (15, 15), ()),
    "of another model size": (("image_size=25",), (25, 25), ()),
    "larger, and cut": (("preprocessor.resize=[18,18]", "crop=[15,15]"), (18, 18), (15, 15)),
    "the shorter side, and cut": (("preprocessor.resize=[16]", "preprocessor.crop=[15,15]"), (16,), (15, 15)),
    "cut of what was there": (("image_size=10", "resize=[15,15]", "crop=[10,10]"), (15, 15), (10, 10)),
    "not resized": (("resize=[]", "crop=[15,15]"), (), (15, 15)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_preprocessor_are_the_models_or_what_the_user_says(
    vit: Path, pictures: Path, tmp_path: Path, name: str
) -> None:
    changes, resize, crop = SIZES[name]
    session = tuned("vit-finetune", vit, pictures, tmp_path / "run", *changes)
    how = session.settings.preprocessor
    assert (how.resize, how.crop) == (resize, crop)
    seen = np.concatenate([session.data.train.images, session.data.validation.images])
    assert np.equal(seen, how.read(pictures / "dark" / "0.png", 3)).all(axis=(1, 2, 3)).sum() == 1
    session.train(max_steps=1)
    trained = load_trained(tmp_path / "run")
    assert np.array_equal(trained.picture(pictures / "light" / "2.png"), how.read(pictures / "light" / "2.png", 3))
    assert json.loads((trained.saved.directory / "preprocessor_config.json").read_text()) == how.to_json()


def test_a_cut_of_the_trained_model_follows_the_image_size(vit: Path, pictures: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(vit, tmp_path / "vit")
    how = Preprocessor((18,), crop=(15, 15)).to_json()
    (folder / "preprocessor_config.json").write_text(json.dumps(how))
    for changes, resize in (((), (30,)), (("resize=[27]",), (27,))):
        session = tuned("vit-finetune", folder, pictures, tmp_path / f"run{len(changes)}", "image_size=25", *changes)
        assert (session.settings.preprocessor.resize, session.settings.preprocessor.crop) == (resize, (25, 25))


def test_a_run_is_resumed_to_the_same_bits(vit: Path, pictures: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"preset": "lora", "seed": 3}
    whole = tuned("vit-finetune", vit, pictures, tmp_path / "whole", "rank=2", **options)
    whole.train()
    tuned("vit-finetune", vit, pictures, tmp_path / "part", "rank=2", **options)
    part, _ = resume(tmp_path / "part")  # died before its first checkpoint: it starts from the model again
    part.train(max_steps=2)
    part, _ = resume(tmp_path / "part")
    assert part.trainer.model.state().keys() == whole.trainer.model.state().keys()
    assert any(name.endswith("lora_a") for name in part.trainer.model.state())
    part.train()
    assert not differences(outcome(part.run), outcome(whole.run))
    with pytest.raises(CheckpointError, match=r"holds a LoRA that is not merged; name the run itself"):
        load(tmp_path / "whole" / "checkpoints" / "best")
    with pytest.raises(CheckpointError, match=r"whole: is a run, whose best model is .*whole/checkpoints/best"):
        load(tmp_path / "whole")
    best = merged_state(load_trained(tmp_path / "whole").model)
    again = tuned("vit-finetune", tmp_path / "whole", pictures, tmp_path / "again").trainer.model.state()
    assert again.keys() == best.keys()
    assert all(same_bits(n, a, best[n]).ok for n, a in again.items())


@pytest.mark.parametrize("preset", ["full", "lora"])
def test_a_gpt_of_transformers(gpt: Path, text: Path, tmp_path: Path, preset: str) -> None:
    import torch

    from tests.interop import theirs

    rank = ("rank=2",) if preset == "lora" else ()
    session = tuned("gpt-finetune", gpt, text, tmp_path / "run", *rank, "context=8", "samples=1", preset=preset)
    assert session.notes == ["context 8 of 11: the later positions are left out"]
    assert session.settings.model.vocabulary == session.data.vocabulary + 1
    assert session.train() == "finished"
    trained = load_trained(tmp_path / "run")
    (written,) = generate(trained.model, trained.tokenizer, ["abc"], tokens=5)
    assert len(written.tokens) == 5
    assert resume(tmp_path / "run")[0].complete  # by the tokenizer that the checkpoint keeps
    trained.model.save_pretrained(tmp_path / "out")
    model = theirs.reopen(tmp_path / "out", theirs.GPT2LMHeadModel)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    expected = theirs.logits(model, ids)
    assert equal("logits", trained.model(ids.numpy()), expected, HUGGING_FACE["float32"]).ok


KEYS = {"bos_token_id": 271, "eos_token_id": 270, "pad_token_id": 0, "unk_token_id": 271, "window": 3}
FILES = {
    "generation_config.json": b'{"eos_token_id": [270, 3], "pad_token_id":0, "temperature": 0.7}',
    "tokenizer_config.json": b'{"tokenizer_class":"PreTrainedTokenizerFast","eos_token":"<end>","pad_token":"!",'
    b'"bos_token":"<begin>"}',
    "special_tokens_map.json": b'{"eos_token": "<end>", "bos_token": "<begin>", "pad_token": "!"}',
    "chat_template.jinja": b"{{ messages[0].content }}\n",
    "LICENSE": b"MIT \xff",
}


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A directory of transformers whose first special token is not the one that ends a text, and more beside it."""
    pytest.importorskip("transformers")
    from tests.interop import theirs

    trained = BytePairs.train(TEXT, 270)
    tokenizer = BytePairs((*trained.vocabulary, "<end>", "<begin>"), trained.merges, ["<begin>", "<end>"])
    folder = theirs.save(theirs.gpt2(vocab_size=tokenizer.size), tmp_path / "chat")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | KEYS))
    for name, data in (FILES | {"tokenizer.json": json.dumps(tokenizer.to_json()).encode()}).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("preset", ["full", "lora"])
def test_what_stood_beside_a_gpt_is_kept(chat: Path, text: Path, tmp_path: Path, preset: str) -> None:
    import shutil

    from transformers import AutoTokenizer, GenerationConfig

    files = FILES | {"tokenizer.json": (chat / "tokenizer.json").read_bytes()}

    def kept(folder: Path) -> None:
        assert {name: (folder / name).read_bytes() for name in files} == files
        config = json.loads((folder / "config.json").read_text())
        config |= config.get("transformers", {})  # while a LoRA learns
        assert {key: config[key] for key in KEYS} == KEYS
        theirs = AutoTokenizer.from_pretrained(folder)
        assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<begin>", "<end>", "!")
        assert GenerationConfig.from_pretrained(folder).eos_token_id == [270, 3]
        assert theirs.apply_chat_template([{"role": "user", "content": "hm"}], tokenize=False) == "hm"

    rank = ("rank=2",) if preset == "lora" else ()
    session = tuned("gpt-finetune", chat, text, tmp_path / "run", *rank, "samples=0", preset=preset)
    session.train(max_steps=3)
    kept(tmp_path / "run/checkpoints/best")
    shutil.rmtree(chat)
    session, _ = resume(tmp_path / "run")
    session.train()
    for step in (tmp_path / "run/checkpoints").iterdir():
        kept(step)
    load_trained(tmp_path / "run").model.save_pretrained(tmp_path / "out")
    kept(tmp_path / "out")
    one = ("samples=0", "steps=1", "evaluate_every=1")
    tuned("gpt-finetune", tmp_path / "run", text, tmp_path / "again", *one).train()
    kept(tmp_path / "again/checkpoints/best")


def test_another_tokenizer_takes_the_place_of_the_old_ones_files(chat: Path, text: Path, tmp_path: Path) -> None:
    other = BytePairs.train(TEXT, 265)
    (tmp_path / "other.json").write_text(json.dumps(other.to_json()))
    config = json.loads((chat / "config.json").read_text())
    (chat / "config.json").write_text(json.dumps(config | {"n_ctx": 11}))
    changes = (f"tokenizer={tmp_path / 'other.json'}", "context=8", "samples=0", "steps=1", "evaluate_every=1")
    tuned("gpt-finetune", chat, text, tmp_path / "run", *changes).train()
    best = tmp_path / "run/checkpoints/best"
    assert json.loads((best / "tokenizer.json").read_text()) == other.to_json()
    config = json.loads((best / "config.json").read_text())
    assert (config["eos_token_id"], config["n_positions"], config["n_ctx"]) == (270, 8, 8)
    assert (best / "LICENSE").read_bytes() == FILES["LICENSE"]
    assert not (best / "special_tokens_map.json").exists()
    (chat / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    tuned("gpt-finetune", chat, text, tmp_path / "again", *changes).train()
    assert json.loads((tmp_path / "again/checkpoints/best/tokenizer.json").read_text()) == other.to_json()


def test_a_damaged_file_beside_a_model_is_said_before_training(chat: Path, text: Path, tmp_path: Path) -> None:
    (chat / "special_tokens_map.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"special_tokens_map\.json: cannot be stored as JSON: Expecting"):
        tuned("gpt-finetune", chat, text, tmp_path / "run", "samples=0").train()


def test_what_stood_beside_a_vit_is_kept(vit: Path, pictures: Path, tmp_path: Path) -> None:
    import shutil

    source = shutil.copytree(vit, tmp_path / "vit")
    config = json.loads((source / "config.json").read_text())
    keys = {"initializer_range": 0.3, "problem_type": "regression", "window": 3}
    (source / "config.json").write_text(json.dumps(config | keys))
    (source / "LICENSE").write_text("MIT")
    tuned("vit-finetune", source, pictures, tmp_path / "run", "steps=1", "evaluate_every=1").train()
    load_trained(tmp_path / "run").model.save_pretrained(tmp_path / "out")
    for folder in (tmp_path / "run/checkpoints/best", tmp_path / "out"):
        found = json.loads((folder / "config.json").read_text())
        assert {key: found[key] for key in keys} == keys | {"problem_type": "single_label_classification"}
        assert found["id2label"] == {"0": "dark", "1": "light"}
        assert (folder / "LICENSE").read_text() == "MIT"
        assert open_assets(folder).preprocessor == Preprocessor((15, 15), "bicubic", mean=(0.4,) * 3, std=(0.3,) * 3)


def test_runs_of_ours_go_on(pictures: Path, text: Path, tmp_path: Path) -> None:
    bands = begin(tmp_path, "steps=2")
    bands.train()
    session = tuned("vit-finetune", bands.run.path, pictures, tmp_path / "pictures")
    assert session.data.image_shape == (1, 6, 6)  # gray, as the model
    assert session.settings.preprocessor == Preprocessor((6, 6), mean=(0.4,), std=(0.2,))
    session.train()

    words = begin(tmp_path, "tokenizer=bytes", text=test_text.RECIPE, name="words")
    words.train(max_steps=2)
    session = tuned("gpt-finetune", words.run.path, text, tmp_path / "text", "samples=0")
    state = session.trainer.model.state()
    assert all(same_bits(n, a, state[n]).ok for n, a in load_trained(words.run.path).model.state().items())
    session.train()
    assert session.notes == []


def test_what_cannot_go_on(vit: Path, gpt: Path, pictures: Path, text: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.write_text(json.dumps(BytePairs.train(TEXT, 280).to_json()))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    cases: list[tuple[str, Path | None, Path | None, tuple[str, ...], type[Exception], str]] = [
        ("vit-finetune", None, pictures, (), ConfigError, r"which model\? name a directory .* --from DIR"),
        ("vit-digits", vit, None, (), ConfigError, r"--from .*: only vit-finetune, swin-finetune and gpt-finetune go"),
        ("vit-finetune", gpt, pictures, (), ConfigError, r"--from .*: holds a GPT, .*; gpt-finetune goes on from it$"),
        ("gpt-finetune", vit, text, (), ConfigError, r"--from .*: holds a ViT, expected a GPT"),
        ("vit-finetune", pictures, pictures, (), CheckpointError, r"has no config\.json; expected"),
        ("vit-finetune", vit, None, (), DataError, r"which pictures\? .* --data folder:DIR"),
        ("gpt-finetune", gpt, None, (), DataError, r"which text\?"),
        ("gpt-finetune", gpt, tmp_path / "latin.txt", (), DataError, r"latin\.txt: is not UTF-8: byte 3 is 0xe9"),
        ("vit-finetune", vit, pictures, ("model.dim=15",), ConfigError, r"model\.dim = 15: the weights are for 12"),
        ("vit-finetune", vit, pictures, ("channels=1",), ConfigError, r"model\.channels = 1: the weights are for 3"),
        ("vit-finetune", vit, pictures, ("classes=3",), ConfigError, r"model\.classes = 3: follows from the data"),
        ("vit-finetune", vit, pictures, ('freeze=["block.*"]',), ConfigError, r"freeze: 'block\.\*' matches no param"),
        ("vit-finetune", vit, pictures, ('lora=["*.qkv"]', "rank=0"), ConfigError, r"rank = 0 is less than 1"),
        ("vit-finetune", vit, pictures, ('lora=["*.qkv"]', "rank=13"), ConfigError, r"rank = 13 is outside 1 to 12"),
        ("vit-finetune", vit, pictures, ("rank=4",), ConfigError, r"rank = 4 is of a LoRA, and lora is empty"),
        ("gpt-finetune", gpt, text, ("alpha=4",), ConfigError, r"alpha = 4\.0 is of a LoRA, and lora is empty"),
        ("vit-finetune", vit, pictures, ("resize=[18,18]",), ConfigError,
            r"\[18, 18\]: .* 15 x 15 pixels .*; set preprocessor\.crop=\[15,15\] too, or set model\.image_size=18"),
        ("vit-finetune", vit, pictures, ("crop=[9,9]",), ConfigError, r"preprocessor\.crop = \[9, 9\]: .*image_size=9"),
        ("vit-finetune", vit, pictures, ("resize=[15,15]", "image_size=25"), ConfigError, r"= \[15, 15\]: makes"),
        ("gpt-finetune", gpt, text, ("context=12",), ConfigError, r"context = 12: the weights are for at most 11"),
        ("gpt-finetune", gpt, text, (f"tokenizer={large}",), ConfigError, r"has 280 tokens, the model 271"),
    ]  # fmt: skip
    for recipe, source, data, changes, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            tuned(recipe, source, data, tmp_path / "run", *changes)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_tokenizer_or_processor(
    vit: Path, gpt: Path, pictures: Path, text: Path, tmp_path: Path
) -> None:
    import shutil

    bare = [shutil.copytree(source, tmp_path / source.name) for source in (vit, gpt)]
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt"):
        for folder in bare:
            (folder / name).unlink(missing_ok=True)
    session = tuned("vit-finetune", bare[0], pictures, tmp_path / "a")
    assert session.settings.preprocessor == Preprocessor((15, 15))
    (bare[0] / "preprocessor_config.json").write_text(json.dumps(Preprocessor((32,), crop=(30, 30)).to_json()))
    session = tuned("vit-finetune", bare[0], pictures, tmp_path / "d")
    assert session.settings.preprocessor == Preprocessor((16,), crop=(15, 15))
    assert "makes images of 30 x 30, the model takes 15 x 15: so they are made" in session.notes[0]
    with pytest.raises(ConfigError, match=r"came without a tokenizer, .*; name its own: --set data\.tokenizer="):
        tuned("gpt-finetune", bare[1], text, tmp_path / "b")
    session = tuned("gpt-finetune", bare[1], text, tmp_path / "c", f"tokenizer={gpt}")
    assert session.data.vocabulary == 270


# ---- Swin -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of transformers without a processor."""
    pytest.importorskip("transformers")
    from tests.interop import theirs

    return theirs.save(theirs.swin(num_channels=3, depths=[1, 2], num_heads=[2, 3]), tmp_path_factory.mktemp("swin"))


@pytest.mark.parametrize("preset", ["full", "lora", "head"])
def test_a_swin_of_transformers(swin: Path, pictures: Path, tmp_path: Path, preset: str) -> None:
    import torch

    from tests.interop import theirs

    rank = ("rank=2",) if preset == "lora" else ()
    session = tuned("swin-finetune", swin, pictures, tmp_path / "run", *rank, preset=preset)
    assert session.notes == ["a new head of 2 classes in place of the old one of 7"]
    assert session.settings.preprocessor == Preprocessor.of_swin(26, 3)
    model, before = session.trainer.model, load(swin).state()
    assert session.train() == "finished"
    after = merged_state(model)
    moved = {n.partition(".")[0] for n, a in after.items() if n in before and not np.array_equal(a, before[n])}
    everything = {"embedding", "patch_norm", "stages", "norm", "head"}
    assert moved == {"full": everything, "lora": {"stages", "head"}, "head": {"head"}}[preset]
    trained = load_trained(tmp_path / "run")
    assert evaluate_run(trained, None, session.data).count == 2
    picture = trained.task.picture(trained.settings, pictures / "dark" / "3.png")
    trained.model.save_pretrained(tmp_path / "out")
    theirs_again = theirs.reopen(tmp_path / "out", theirs.SwinForImageClassification)
    x = normalize(picture[None], session.settings.preprocessor.mean, session.settings.preprocessor.std)
    found = trained.model.backend.to_numpy(trained.model(x))
    assert equal("logits", found, theirs.logits(theirs_again, torch.tensor(x)), HUGGING_FACE["float32"]).ok


def test_a_swin_for_other_images_is_resumed_to_the_same_bits(swin: Path, pictures: Path, tmp_path: Path) -> None:
    """Windows of 3 on grids of 13 and 7 become windows of 2 on a grid of 2 where images have 4 pixels."""
    how: dict[str, Any] = {"preset": "lora", "seed": 3}
    whole = tuned("swin-finetune", swin, pictures, tmp_path / "whole", "image_size=4", "rank=2", **how)
    assert whole.notes == [
        "stage 0: tables for windows of 3 made such for windows of 2",
        "stage 1: tables for windows of 3 made such for windows of 1",
        "a new head of 2 classes in place of the old one of 7",
    ]
    whole.train()
    part = tuned("swin-finetune", swin, pictures, tmp_path / "part", "image_size=4", "rank=2", **how)
    part.train(max_steps=2)
    part, _ = resume(tmp_path / "part")
    part.train()
    assert not differences(outcome(part.run), outcome(whole.run))


def test_each_kind_has_its_recipe(swin: Path, vit: Path, pictures: Path, tmp_path: Path) -> None:
    for recipe, source, message in (
        ("vit-finetune", swin, r"holds a Swin, expected a ViT; swin-finetune goes on from it$"),
        ("swin-finetune", vit, r"holds a ViT, expected a Swin; vit-finetune goes on from it$"),
    ):
        with pytest.raises(ConfigError, match=message):
            tuned(recipe, source, pictures, tmp_path / "run")
