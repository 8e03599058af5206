"""Models read from directories, and written to them."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from xpformer.errors import CheckpointError, ConfigError
from xpformer.interop import hf_vit, hub, timm, timm_swin, vit_jax
from xpformer.interop.assets import Assets, read_assets
from xpformer.interop.card import model_card
from xpformer.interop.documents import Read, listed, read_object
from xpformer.interop.families import SWIN, VIT, Family, describe, family_of, is_theirs, published, read_config
from xpformer.interop.hf_swin import cropped_tables
from xpformer.interop.layouts import HostArray, Stored, Table, fetch, identity
from xpformer.interop.preprocessor import FILE, read_preprocessor, unknown_keys
from xpformer.interop.tensor_files import (
    INDEX,
    SHARD_BYTES,
    WEIGHTS,
    TensorFiles,
    open_tensors,
    refuse,
    serialized,
    shards,
)
from xpformer.models.model import Model
from xpformer.models.tuning import merged_state
from xpformer.parameters import initial_values
from xpformer.training import fs, strict_json

if TYPE_CHECKING:
    from xpformer.backend import Backend

M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Pretrained:
    """What was read and checked, not yet a model; ``dataclasses.replace`` makes another of it."""

    where: str
    """The directory or file."""
    family: Family
    config: Any
    values: dict[str, HostArray]
    """The weights, by our names; those of a missing classifier are not among them."""
    dtype: str
    """Of the weights: ``float64``, or ``float32`` for half precision too."""
    assets: Assets
    notes: tuple[str, ...] = ()
    """What people should know, a line each."""

    def build(self, backend: Backend | str = "numpy", dtype: str | None = None, *, seed: int = 0) -> Model:
        """The model on a backend; what has no weights gets initial ones.

        Raises:
            ConfigError: if ``dtype`` is neither float32 nor float64.
        """
        if dtype not in (None, "float32", "float64"):
            raise ConfigError(f"dtype {dtype!r} is unknown; it is float32 or float64")
        model = self.family.model(self.config, seed=seed)
        parameters = model.named_parameters()
        fresh = initial_values(parameters, seed)
        missing = {name: fresh(name) for name in parameters if name not in self.values}
        model.to(backend, dtype or self.dtype, values=self.values | missing)
        model.assets = self.assets
        return model


def open_pretrained(source: str | Path, *, revision: str | None = None) -> Pretrained:
    """What a directory, a file or the hub has under this name.

    Args:
        source: a directory, a ``.npz`` of vit_jax, or ``owner/name`` on the hub.
        revision: on the hub.

    Raises:
        CheckpointError: if the files are missing or damaged, or a tensor is missing, unknown or of another shape.
        ConfigError: if ``config.json`` cannot be.
        DataError: if a file cannot be read.
    """
    path = Path(source)
    if path.suffix == ".npz":
        return _read_npz(path)
    if not path.exists() and hub.is_name(path.as_posix()):
        path = hub.download(path.as_posix(), revision)
    if path.exists() and not path.is_dir():
        refuse(path)
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist; expected a directory with config.json and {WEIGHTS}, or a .npz")
    if not (path / "config.json").exists():
        raise CheckpointError(f"{path}: has no config.json; expected a directory with it and {WEIGHTS}")
    if (path / "run.json").exists():
        raise CheckpointError(f"{path}: is a run, whose best model is {path / 'checkpoints' / 'best'}")
    document = read_object(path / "config.json")
    if timm.is_timm(document):
        return _read_timm(path, document)
    return _read_directory(path, document)


def _read_directory(folder: Path, document: Mapping[str, Any]) -> Pretrained:
    family, read, notes = read_config(str(folder / "config.json"), document)
    theirs, config = family.theirs, read.config
    stored = open_tensors(folder)
    assets, said = _beside(folder, family, read, stored.files)
    notes += said
    if not is_theirs(document):
        if any(name.endswith(".lora_a") for name in stored.shapes):
            raise CheckpointError(
                f"{stored.where}: holds a LoRA that is not merged; name the run itself, which merges it"
            )
        return _fetched(family, config, None, stored, assets, notes)
    stored.rename({name: theirs.rename(name) for name in stored.shapes})
    ignored = [name for name in stored.shapes if theirs.ignores(name)]
    table = theirs.table(config)
    _check_head(family, document, table, stored, ignored)
    unused = [stored.called(name) for name in ignored if name.startswith(theirs.LEFT)]
    assets = replace(assets, left=(*assets.left, *unused))
    fitted, said = theirs.fitted(config, stored)
    notes += said
    return _fetched(family, config, table, fitted, assets, notes, fresh=theirs.FRESH, ignored=ignored)


def _check_head(
    family: Family, document: Mapping[str, Any], table: Table, stored: TensorFiles, ignored: Collection[str]
) -> None:
    """Raise :class:`CheckpointError` where a model has another head than ours."""
    theirs, known = family.theirs, {name for entry in table.values() for name in entry.names}
    named, others = document.get("architectures"), [n for n in stored.shapes if n not in known and n not in ignored]
    if others and named and named not in ([theirs.ARCHITECTURE], [theirs.BODY]):
        raise CheckpointError(
            f"{stored.where}: is of {named!r:.80} and holds {listed(map(stored.called, others))}; only "
            f"{theirs.ARCHITECTURE} and {theirs.BODY} are read; to take the body alone, with transformers: "
            f"{theirs.BODY}.from_pretrained(...), then save_pretrained(...)"
        )


def _beside(folder: Path, family: Family, read: Read, files: Collection[str] = ()) -> tuple[Assets, list[str]]:
    """What stands beside the weights, which are in ``files``, in a directory of theirs or ours, and notes."""
    used, notes, how, file = {*files, "config.json", INDEX}, [], None, folder / FILE
    if family.has_classes and file.is_file():
        document = read_object(file)
        how, unknown = read_preprocessor(str(file), document, read.config.channels), unknown_keys(document)
        used.add(FILE)
        size = (read.config.image_size, read.config.image_size)
        if how.shape != size:
            made, taken = ("{} x {}".format(*shape) for shape in (how.shape, size))
            notes.append(f"{file}: makes images of {made}, the model takes {taken}: so they are made")
        if unknown:
            notes.append(f"{file}: not known, and so not used: {listed(unknown)}")
    assets = read_assets(folder, used=used, class_names=read.class_names, preprocessor=how, carried=read.carried)
    return assets, notes


def open_assets(folder: Path) -> Assets:
    """What stands beside the weights in a directory that we or Hugging Face wrote; its weights are not looked at.

    Raises:
        CheckpointError, ConfigError, DataError: as :func:`open_pretrained`.
    """
    where = folder / "config.json"
    family, read, _ = read_config(str(where), read_object(where))
    return _beside(folder, family, read)[0]


def _read_npz(path: Path) -> Pretrained:
    stored = vit_jax.NpzFile(path)
    config = vit_jax.read_config(stored)
    return _fetched(VIT, config, vit_jax.table(config), stored, Assets(where=str(path)), [], fresh=hf_vit.FRESH)


def _read_timm(folder: Path, document: Mapping[str, Any]) -> Pretrained:
    where, stored = str(folder / "config.json"), open_tensors(folder)
    is_swin = timm_swin.is_swin(document)
    if is_swin:
        stored.rename(timm_swin.names(stored))
    config = (timm_swin if is_swin else timm).read_config(where, document, stored)
    how = timm.read_preprocessor(where, document, config)
    names, notes = timm.read_class_names(where, document, config.classes)
    used = {*stored.files, "config.json", INDEX}
    assets = read_assets(folder, used=used, class_names=names, preprocessor=how)
    if not is_swin:
        return _fetched(VIT, config, timm.table(config), stored, assets, notes, fresh=timm.FRESH)
    table = timm_swin.table(config)
    fitted, said = cropped_tables(config, table, stored)
    notes += [*said, *timm_swin.notes(where, config)]
    ignored = [name for name in stored.shapes if timm_swin.ignores(name)]
    return _fetched(SWIN, config, table, fitted, assets, notes, fresh=timm_swin.FRESH, ignored=ignored)


def _fetched(
    family: Family,
    config: Any,
    table: Table | None,
    stored: Stored,
    assets: Assets,
    notes: Sequence[str],
    *,
    fresh: Collection[str] = (),
    ignored: Collection[str] = (),
) -> Pretrained:
    """The tensors by our names; without a table they have them already.  Of ``fresh`` ones all or none is missing."""
    parameters = {name: p.shape for name, p in family.model(config).named_parameters().items()}
    rows = identity(parameters) if table is None else table
    if {n for ours in fresh for n in rows[ours].names} & stored.shapes.keys():
        fresh = ()
    values = fetch(rows, parameters, stored, fresh=fresh, ignored=ignored)
    if fresh:
        notes = [*notes, f"{stored.where}: has no classifier; a new one with {config.classes} classes is made"]
    return Pretrained(assets.where, family, config, values, stored.dtype, assets, tuple(notes))


def load(
    source: str | Path,
    *,
    backend: Backend | str = "numpy",
    dtype: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    expected: type[M] | None = None,
) -> M:
    """The model of :func:`open_pretrained` on a backend, of the class that its configuration names.

    What is worth knowing is a :class:`UserWarning` of one line.  Arguments and errors are those of
    :meth:`~xpformer.models.model.Model.from_pretrained`.

    Raises:
        ConfigError: if it is of another class than ``expected``.
    """
    found = open_pretrained(source, revision=revision)
    if expected is not None and found.family.model is not expected:
        raise ConfigError(f"{found.where}: holds a {found.family.model.__name__}, expected a {expected.__name__}")
    for note in found.notes:
        warnings.warn(note, stacklevel=3)
    return cast("M", found.build(backend, dtype, seed=seed))


def save(
    model: Model,
    directory: str | Path,
    *,
    assets: Assets | None = None,
    own: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model to a new directory: configuration, weights, what stands beside them, and a card.

    Args:
        model: on any backend; a LoRA is merged into what it adapts.
        directory: missing or empty.
        assets: what stands beside the weights; by default what the model was read with.
        own: write our ``model_type`` and names; by default where Hugging Face's class lacks an option of the model,
            which is then said, a :class:`UserWarning` of one line.
        shard_bytes: a file of weights is at most so long, if it holds more than one tensor.

    Raises:
        CheckpointError: if something is there already, or it cannot be written.
        ConfigError: if ``own`` is false and Hugging Face's class lacks an option.
    """
    found = assets or model.assets or Assets()
    for note in write(Path(directory), model.config, merged_state(model), found, own=own, shard_bytes=shard_bytes):
        warnings.warn(note, stacklevel=3)
    return Path(directory)


def write(
    directory: Path,
    config: Any,
    values: Mapping[str, HostArray],
    assets: Assets,
    *,
    own: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """The same for weights that are on the host; returns what people should know, a line each."""
    family, notes = family_of(config), []
    if directory.suffix == ".npz":  # nothing would read it again
        raise ConfigError(
            f"{directory}: is the name of a file of vit_jax, and a directory is written; take another name, or "
            "convert --to vit_jax"
        )
    lacking = family.theirs.lacks(config)
    if lacking and own is False:
        raise ConfigError(
            f"{directory}: not written: {family.theirs.ARCHITECTURE} has no {', no '.join(lacking)}; "
            f"write it as {family.own_type} (convert --to xpformer, save_pretrained(own=True))"
        )
    if lacking and own is None:
        notes.append(
            f"{directory}: {family.theirs.ARCHITECTURE} has no {', no '.join(lacking)}; "
            f"written as {family.own_type}, which xpformer.load reads and transformers does not"
        )
    own = bool(lacking) if own is None else own
    dtype = str(next(iter(values.values())).dtype)
    document = describe(config, assets.class_names, dtype, carried=assets.carried, own=own)
    texts = {"config.json": strict_json.dumps(document), **assets.texts()}
    groups = dict(shards(published(document, family.model(config), values), shard_bytes))
    if len(groups) > 1:
        texts[INDEX] = strict_json.dumps(
            {
                "metadata": {"total_size": sum(a.nbytes for group in groups.values() for a in group.values())},
                "weight_map": {name: file for file, group in groups.items() for name in group},
            }
        )
    parameters = sum(a.size for a in values.values())
    texts["README.md"] = model_card(config, document, [*groups, *texts], parameters)
    _write_files(directory, texts, groups)
    return notes


def _write_files(directory: Path, texts: Mapping[str, bytes], groups: Mapping[str, Mapping[str, HostArray]]) -> None:
    """All files or none: written in a hidden directory beside, which is then renamed; a link is followed."""
    try:
        directory = directory.resolve()
    except (OSError, ValueError) as error:  # a loop of links; a zero byte in the name
        raise CheckpointError(f"{directory}: cannot be written: {error}; take another directory") from error
    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise CheckpointError(f"{directory}: exists already, and nothing is written over; take another directory")
    staging = directory.with_name(f".tmp-{directory.name}-{os.getpid()}")
    try:
        fs.make_directories(directory.parent)
        fs.delete_tree(staging)
        fs.make_directory(staging)
        try:
            for name, group in groups.items():
                fs.write_file(staging / name, serialized(group))
            for name, text in texts.items():
                fs.write_file(staging / name, text)
            fs.fsync_directory(staging)
            if directory.is_dir():
                fs.delete_tree(directory)
            fs.rename(staging, directory)
        except BaseException:
            with contextlib.suppress(OSError):
                fs.delete_tree(staging)
            raise
        fs.fsync_directory(directory.parent)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error.strerror or error}") from error
