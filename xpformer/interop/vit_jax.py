"""The ``.npz`` files of google-research/vision_transformer, the ViT paper's and AugReg's, and those of big_vision.

A file holds arrays and no configuration: sizes are read off the shapes, and the code that made the file computes with
the tanh form of GELU and eps 1e-6.  Names are those of the paper's files; three other spellings are read too:

- the prefix ``opt/target/`` or ``params/``;
- the numbers of newer flax, ``LayerNorm_1``, ``MultiHeadDotProductAttention_0``, ``MlpBlock_0``;
- all blocks stacked along a first axis, under ``encoderblock``.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xpformer.data.regular import open_regular
from xpformer.errors import CheckpointError, ConfigError
from xpformer.interop.assets import Assets
from xpformer.interop.documents import MOST_BLOCKS, listed
from xpformer.interop.families import default_names
from xpformer.interop.hf_vit import lacks as lacks_of_theirs
from xpformer.interop.layouts import ROW, SAME, TOKEN, Entry, HostArray, Layout, Table, called, check_name, one, store
from xpformer.models.vit import ViTConfig
from xpformer.training import fs

NORM_EPS, ACTIVATION = 1e-6, "gelu_tanh"
"""Those of the code, which no file states."""
_BLOCK = "Transformer/encoderblock_{}"
_POSITIONS = "Transformer/posembed_input/pos_embedding"
_NEW_NUMBERS = (
    (r"(encoderblock_\d+/)LayerNorm_1/", r"\1LayerNorm_2/"),
    (r"(encoderblock_\d+/)MultiHeadDotProductAttention_0/", r"\1MultiHeadDotProductAttention_1/"),
    (r"(encoderblock_\d+/)MlpBlock_0/", r"\1MlpBlock_3/"),
    (r"^pos_embedding$", _POSITIONS),
)


class NpzFile:
    """The arrays of a ``.npz`` by the names of the paper's files, each read when it is asked for.

    Raises:
        CheckpointError: if it is no such file, or it holds Python objects.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[str, int | None]] = {}  # (name in the file, number along the first axis)
        open_regular(path).close()  # a pipe would hang
        found = self._headers()
        prefix = next((p for p in ("opt/target/", "params/") if f"{p}embedding/kernel" in found), "")
        self.dtype = "float32"
        for name, (shape, dtype) in found.items():
            if not name.startswith(prefix):
                continue  # the state of an optimizer
            self.dtype = "float64" if dtype == np.float64 else self.dtype
            for plain, number in _unstacked(name.removeprefix(prefix), shape):
                check_name(self.where, plain)
                for pattern, replacement in _NEW_NUMBERS:
                    plain = re.sub(pattern, replacement, plain)
                if plain in self.shapes:
                    raise CheckpointError(f"{path}: {self.called(plain)} and {name} are the same array by two names")
                self.shapes[plain] = shape if number is None else shape[1:]
                self._places[plain] = (name, number)

    def _headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Name to shape and dtype; what an array's header claims must be in the file."""
        found = {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    with archive.open(member) as file:
                        version = np.lib.format.read_magic(file)
                        read = np.lib.format.read_array_header_1_0
                        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
                        claimed = file.tell() + math.prod(shape) * dtype.itemsize
                    if dtype.hasobject:
                        raise CheckpointError(f"{self.path}: {member.filename} holds objects, which can run code")
                    if claimed != member.file_size:
                        raise ValueError(f"{member.filename} has {member.file_size:,} bytes, expected {claimed:,}")
                    found[member.filename.removesuffix(".npy")] = (tuple(shape), dtype)
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise self._damaged(error) from error
        return found

    def called(self, name: str) -> str:
        """What the file calls it."""
        if name in self._places:
            member, number = self._places[name]
            return member if number is None else f"{member}[{number}]"
        return called({ours: member for ours, (member, _) in self._places.items()}, name)

    def read(self, name: str) -> HostArray:
        """One array; half precision becomes float32."""
        member, number = self._places[name]
        try:
            with np.load(self.path) as archive:
                array: HostArray = archive[member]
        except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise self._damaged(error) from error
        array = array if number is None else array[number]
        if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16 as NumPy stores what it does not know
            array = (array.view("<u2").astype("<u4") << 16).view("<f4")
        if array.dtype.kind != "f":
            raise CheckpointError(f"{self.path}: {member} has dtype {array.dtype}, expected a floating-point one")
        return array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32, copy=False)

    def _damaged(self, error: Exception) -> CheckpointError:
        reason = " ".join(str(error).split())
        return CheckpointError(f"{self.path}: is damaged, or no .npz file: {reason:.200}")


def _unstacked(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None]]:
    head, stacked, rest = name.partition("Transformer/encoderblock/")
    if not stacked or head or not shape:
        yield name, None
        return
    for i in range(min(shape[0], MOST_BLOCKS + 1)):
        yield f"{_BLOCK.format(i)}/{rest}", i


def read_config(stored: NpzFile) -> ViTConfig:
    """The sizes that the shapes say; two classes where there is no classifier, as transformers has it.

    Raises:
        CheckpointError: if an array is missing that says one.
    """
    if any(name.startswith(("conv_root", "block1/")) for name in stored.shapes):
        raise CheckpointError(f"{stored.where}: is a hybrid with a ResNet in front, which is not supported")
    patch, columns, channels, dim = _shape(stored, "embedding/kernel", 4)
    _, tokens, _ = _shape(stored, _POSITIONS, 3)
    query = f"{_BLOCK.format(0)}/MultiHeadDotProductAttention_1/query/kernel"
    _, heads, width = _shape(stored, query, 3)
    if heads * width != dim:
        found, expected = stored.shapes[query], f"({dim}, heads, {dim} / heads)"
        raise CheckpointError(f"{stored.where}: {stored.called(query)} has shape {found}, expected {expected}")
    _, hidden = _shape(stored, f"{_BLOCK.format(0)}/MlpBlock_3/Dense_0/kernel", 2)
    depth = len({m[1] for name in stored.shapes if (m := re.match(r"Transformer/encoderblock_(\d+)/", name))})
    side = math.isqrt(max(0, tokens - 1))
    if patch != columns or side * side != tokens - 1 or min(stored.shapes["embedding/kernel"]) < 1:
        raise CheckpointError(f"{stored.where}: patches or images are not square, which is not supported")
    if depth > MOST_BLOCKS:
        raise CheckpointError(f"{stored.where}: has {depth:,} blocks, expected at most {MOST_BLOCKS:,}")
    try:
        return ViTConfig(
            image_size=patch * side,
            channels=channels,
            classes=_shape(stored, "head/kernel", 2)[1] if "head/kernel" in stored.shapes else 2,
            embedding="conv",
            patch_size=patch,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_ratio=hidden / dim,
            activation=ACTIVATION,
            norm_eps=NORM_EPS,
            head_hidden=_shape(stored, "pre_logits/kernel", 2)[1] if "pre_logits/kernel" in stored.shapes else 0,
        )
    except ConfigError as error:
        raise CheckpointError(f"{stored.where}: {error}") from error


def _shape(stored: NpzFile, name: str, rank: int) -> tuple[int, ...]:
    if name not in stored.shapes:
        raise CheckpointError(f"{stored.where}: lacks {stored.called(name)}, which every ViT of vit_jax has")
    if len(stored.shapes[name]) != rank:
        found = stored.shapes[name]
        raise CheckpointError(f"{stored.where}: {stored.called(name)} has shape {found}, expected {rank} axes")
    return stored.shapes[name]


def lacks(config: ViTConfig) -> list[str]:
    """The options of a model that the code cannot have."""
    found = [text for text in lacks_of_theirs(config) if not text.startswith("head_hidden")]
    if config.head_hidden and config.head_activation != "tanh":
        found.append(f"head_activation = {config.head_activation!r}")
    return found + ([] if config.qkv_bias else ["qkv_bias = False"])


def _left_behind(config: ViTConfig, assets: Assets) -> list[str]:
    """What a file of weights alone cannot hold."""
    cut = config.image_size - config.image_size % config.patch_size  # the size that the positions say
    options = {
        "image_size": cut,
        **dict.fromkeys(("dropout", "hidden_dropout", "attention_dropout", "drop_path"), 0.0),
        "init": ViTConfig.init,
    }
    here = {name: getattr(config, name) or 0.0 for name in options}  # None of hidden_dropout: as dropout
    found = [f"{name} = {here[name]!r}" for name, value in options.items() if here[name] != value]
    names = assets.class_names and assets.class_names != default_names(config)
    keys = [f"{', '.join(assets.carried)} of config.json"] if assets.carried else []
    return [*(["the names of the classes"] if names else []), *assets.texts(), *found, *keys]


def write_npz(
    path: Path, config: ViTConfig, values: Mapping[str, HostArray], assets: Assets | None = None
) -> list[str]:
    """Write weights by the names of the paper's files; returns what people should know, a line each.

    Raises:
        CheckpointError: if something is there already, or it cannot be written.
        ConfigError: if the model has options that the code has not.
    """
    if lacking := lacks(config):
        raise ConfigError(f"{path}: not written: vit_jax has no {', no '.join(lacking)}")
    if path.suffix != ".npz":
        raise ConfigError(f"{path}: expected a name ending in .npz")
    buffer = io.BytesIO()
    arrays: dict[str, Any] = store(table(config), values)
    np.savez(buffer, **arrays)
    try:
        if os.path.lexists(path):
            raise CheckpointError(f"{path}: exists already, and nothing is written over; take another name")
        fs.make_directories(path.absolute().parent)
        fs.replace_file(path, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    here = {"activation": config.activation, "norm_eps": config.norm_eps}
    there = {"activation": ACTIVATION, "norm_eps": NORM_EPS}
    differ = (
        f"{path}: holds weights alone; vit_jax computes with {_options(there)}, this model has {_options(here)}, so "
        "that the outputs differ a little"
    )
    left = listed(_left_behind(config, assets or Assets()), most=20)
    behind = f"{path}: holds weights alone; left behind: {left}"
    return ([] if here == there else [differ]) + ([behind] if left else [])


def _options(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in options.items())


def table(config: ViTConfig) -> Table:
    """Where every parameter stands."""
    return dict(_entries(config))


def _entries(c: ViTConfig) -> Iterator[tuple[str, Entry]]:
    heads = c.heads_per_block[0]
    yield from one("token.weight", "cls", TOKEN)
    yield from one("positions.weight", _POSITIONS, ROW)
    ours, layout = _patch_embedding(c)
    yield from _affine(ours, "embedding", layout)
    for i in range(c.depth):
        block, theirs = f"blocks.{i}", _BLOCK.format(i)
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        qkv = [f"{attention}/{part}" for part in ("query", "key", "value")]
        yield from _norm(f"{block}.norm1", f"{theirs}/LayerNorm_0")
        yield f"{block}.attention.qkv.weight", Entry(tuple(f"{n}/kernel" for n in qkv), _three((c.dim, heads, -1)))
        yield f"{block}.attention.qkv.bias", Entry(tuple(f"{n}/bias" for n in qkv), _three((heads, -1)))
        split = Layout(lambda a: [a.reshape(heads, -1, a.shape[1])], lambda p: p[0].reshape(-1, p[0].shape[2]))
        yield from _affine(f"{block}.attention.projection", f"{attention}/out", split)
        yield from _norm(f"{block}.norm2", f"{theirs}/LayerNorm_2")
        yield from _affine(f"{block}.mlp.fc1", f"{theirs}/MlpBlock_3/Dense_0")
        yield from _affine(f"{block}.mlp.fc2", f"{theirs}/MlpBlock_3/Dense_1")
    yield from _norm("norm", "Transformer/encoder_norm")
    yield from _affine("head.hidden", "pre_logits")
    yield from _affine("head.output", "head")


def _affine(ours: str, theirs: str, layout: Layout = SAME) -> Iterator[tuple[str, Entry]]:
    yield from one(f"{ours}.weight", f"{theirs}/kernel", layout)
    yield from one(f"{ours}.bias", f"{theirs}/bias")


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, Entry]]:
    yield from one(f"{ours}.weight", f"{theirs}/scale")
    yield from one(f"{ours}.bias", f"{theirs}/bias")


def _three(shape: tuple[int, ...]) -> Layout:
    """Query, key and value, each with an axis of heads."""
    return Layout(
        lambda a: [part.reshape(shape) for part in np.split(a, 3, axis=-1)],
        lambda parts: np.concatenate([p.reshape(*p.shape[:-2], -1) for p in parts], axis=-1),
    )


def _patch_embedding(c: ViTConfig) -> tuple[str, Layout]:
    """The kernel is (rows, columns, channels, D)."""
    if c.embedding == "conv":
        return "embedding.convolutions.0", Layout(
            lambda a: [a.transpose(2, 3, 1, 0)], lambda parts: parts[0].transpose(3, 2, 0, 1)
        )
    return "embedding.projection", Layout(
        lambda a: [a.reshape(c.channels, c.patch_size, c.patch_size, -1).transpose(1, 2, 0, 3)],
        lambda parts: parts[0].transpose(2, 0, 1, 3).reshape(-1, parts[0].shape[3]),
    )
