"""The trained model that a run starts from: another run, or whatever :mod:`xpformer.interop` reads."""

from __future__ import annotations

from pathlib import Path

from xpformer.interop.assets import Assets
from xpformer.interop.families import family_of
from xpformer.interop.pretrained import Pretrained, open_pretrained
from xpformer.models.tuning import merged_state


def open_start(source: Path) -> Pretrained:
    """The model in ``source``, on the host; of a run the best weights, a LoRA merged into what it adapts.

    Raises:
        CheckpointError: if it is neither a run nor a directory of a format that is known, or it is damaged.
    """
    if not (source / "run.json").exists():
        return open_pretrained(source)
    from xpformer.training.tasks.images import ImageTask
    from xpformer.training.trained import load_trained

    trained = load_trained(source, backend="numpy")
    saved, config = trained.saved, trained.settings.model
    if isinstance(trained.task, ImageTask):
        assets = Assets(trained.class_names, trained.task.preprocessor(trained.settings, trained.preprocessor))
    else:
        file = saved.directory / "tokenizer.json"
        assets = Assets(files={file.name: file.read_bytes()} if file.name in saved.documents else {}, where=str(source))
    weights, dtype = merged_state(trained.model), trained.model.dtype
    return Pretrained(str(saved.directory), family_of(config), config, weights, dtype, assets)
