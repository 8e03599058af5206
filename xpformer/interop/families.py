"""The kinds of models that can be read and written, and what stands in ``config.json`` of each.

A configuration that Hugging Face's class can express is written as that class reads it.  Options of ours that it does
not know and that change nothing of what the model computes stand in the key ``xpformer`` beside.  Any other
configuration is written with a ``model_type`` of our own; keys of theirs that change nothing here, such as the token
that ends a text, then stand in the key ``transformers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from xpformer.data.preprocess import Preprocessor
from xpformer.errors import ConfigError, suggest
from xpformer.interop import hf_gpt, hf_swin, hf_vit
from xpformer.interop.documents import Read, are_names, changed, converted, listed
from xpformer.interop.layouts import HostArray, InMemory, Stored, Table, fetch, store
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.model import Model
from xpformer.models.swin import Swin, SwinConfig
from xpformer.models.vit import ViT, ViTConfig


class Theirs(Protocol):
    """What is known of a class of transformers: :mod:`xpformer.interop.hf_vit`, ``hf_swin``, ``hf_gpt``."""

    MODEL_TYPE: str
    ARCHITECTURE: str
    BODY: str
    """The same without a head."""
    FRESH: tuple[str, ...]
    LEFT: tuple[str, ...]
    """How the names of tensors begin that are learned and need no place."""

    def lacks(self, config: Any, /) -> list[str]:
        """The options that the class cannot have."""

    def keys(self, config: Any, /) -> dict[str, Any]:
        """The model's part of ``config.json``."""

    def read_config(self, where: str, document: Mapping[str, Any], /) -> Read:
        """The configuration that a document says."""

    def rename(self, name: str, /) -> str:
        """The name on disk of a tensor."""

    def ignores(self, name: str, /) -> bool:
        """Whether a tensor needs no place."""

    def fitted(self, config: Any, stored: Stored, /) -> tuple[Stored, list[str]]:
        """The tensors as the configuration takes them, and notes; :class:`CheckpointError` where they contradict it."""

    def table(self, config: Any, /) -> Table:
        """Where every parameter stands."""


@dataclass(frozen=True)
class Family:
    """A kind of model, and its class in transformers."""

    model: type[Model]
    config: type[Any]
    own_type: str
    """The ``model_type`` of configurations that only we can read."""
    theirs: Theirs
    has_classes: bool = True
    """Whether it gives scores of classes, which have names."""


VIT = Family(ViT, ViTConfig, "xpformer-vit", hf_vit)
SWIN = Family(Swin, SwinConfig, "xpformer-swin", hf_swin)
GPT2 = Family(GPT, GPTConfig, "xpformer-gpt", hf_gpt, has_classes=False)
FAMILIES = (VIT, SWIN, GPT2)
_CARRIED = "transformers"
"""The key, in our own configurations, of what only transformers reads."""


def family_of(config: Any) -> Family:
    """The family of a model's configuration."""
    for family in FAMILIES:
        if isinstance(config, family.config):
            return family
    raise ConfigError(f"{type(config).__name__}: is the configuration of no model that can be written")


def is_theirs(document: object) -> bool:
    """Whether a ``config.json`` is one of Hugging Face's, and so the weights beside it have their names."""
    return isinstance(document, Mapping) and document.get("model_type") in {f.theirs.MODEL_TYPE for f in FAMILIES}


def describe(
    config: Any,
    class_names: tuple[str, ...],
    dtype: str,
    *,
    carried: Mapping[str, Any] | None = None,
    own: bool | None = None,
) -> dict[str, Any]:
    """``config.json``: ours where ``own``, theirs where not; by default theirs where it has a place for every option.

    Args:
        config: the model's.
        class_names: of its classes, if they have names.
        dtype: of the weights.
        carried: keys of the file that the model was read from, which change nothing of what it computes.
        own: which of the two.
    """
    import xpformer

    family = family_of(config)
    if is_own(config) if own is None else own:
        names = {"class_names": list(class_names)} if class_names else {}
        others = {_CARRIED: dict(carried)} if carried else {}
        version = {"xpformer_version": xpformer.__version__}
        return {"model_type": family.own_type, **version, **asdict(config), **names, **others}
    document = {
        "model_type": family.theirs.MODEL_TYPE,
        "architectures": [family.theirs.ARCHITECTURE],
        **family.theirs.keys(config),
        **(hf_vit.labels(class_names or default_names(config)) if family.has_classes else {}),
        "dtype": dtype,
        "torch_dtype": dtype,  # the same, for transformers 4
    }
    others = ({} if family.has_classes else dict.fromkeys(("bos_token_id", "eos_token_id"))) | dict(carried or {})
    document |= {key: value for key, value in others.items() if key not in document}
    read = family.theirs.read_config("config.json", document)
    return document | {"xpformer": {"version": xpformer.__version__, **changed(config, read.config)}}


def is_own(config: Any) -> bool:
    """Whether Hugging Face's class lacks an option of the model."""
    return bool(family_of(config).theirs.lacks(config))


def default_names(config: ViTConfig | SwinConfig) -> tuple[str, ...]:
    """As transformers names classes that have none."""
    return tuple(f"LABEL_{i}" for i in range(config.classes))


def default_preprocessor(config: ViTConfig | SwinConfig) -> Preprocessor:
    """What is done to a picture where nothing says it: the figures of the kind's own."""
    make = Preprocessor.of_swin if isinstance(config, SwinConfig) else Preprocessor.of_vit
    return make(config.image_size, config.channels)


def read_config(where: str, document: Mapping[str, Any]) -> tuple[Family, Read, list[str]]:
    """A ``config.json`` of either kind: the family, what it says, and notes.

    Raises:
        ConfigError: naming the key that cannot be, and what was expected.
    """
    known = {name: f for f in FAMILIES for name in (f.own_type, f.theirs.MODEL_TYPE)}
    model_type = document.get("model_type")
    family = known.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ConfigError(
            f"{where}: model_type is {model_type!r:.60}, an unknown architecture; {suggest(str(model_type), known)}"
        )
    if not is_theirs(document):
        others = ("model_type", "xpformer_version", "class_names", _CARRIED)
        fields = {k: v for k, v in document.items() if k not in others}
        names, carried = document.get("class_names", []), document.get(_CARRIED, {})
        if not are_names(names):
            raise ConfigError(f"{where}: class_names is {names!r:.60}, expected a list of printable texts")
        if not isinstance(carried, dict):
            raise ConfigError(f"{where}: {_CARRIED} is {carried!r:.60}, expected an object of keys")
        return family, Read(converted(where, family.config, fields), tuple(names), carried, ()), []
    read = family.theirs.read_config(where, document)
    notes = [f"{where}: not known, and so not used: {listed(read.unknown)}"] if read.unknown else []
    ours = document.get("xpformer", {})
    if not isinstance(ours, Mapping):
        raise ConfigError(f"{where}: xpformer is {ours!r:.60}, expected an object of options")
    options = {k: v for k, v in ours.items() if k != "version"}
    config = converted(f"{where}: xpformer", family.config, {**asdict(read.config), **options})
    changes = family.theirs.keys(config) != family.theirs.keys(read.config)
    if changes or (is_own(config) and not is_own(read.config)):
        return family, read, [*notes, f"{where}: the options under xpformer contradict the others and are left out"]
    return family, read._replace(config=config), notes


def class_names(where: str, document: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a ``config.json`` of either kind."""
    return read_config(where, document)[1].class_names


def published(document: object, model: Any, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
    """Weights of ``model``, whose ``config`` is looked at, by the names that belong to a ``config.json``."""
    if not is_theirs(document):
        return dict(values)
    return store(family_of(model.config).theirs.table(model.config), values)


def adopted(document: object, model: Any, values: Mapping[str, HostArray], where: str) -> dict[str, HostArray]:
    """The opposite of :func:`published`: weights beside a ``config.json``, by the names of ``model``.

    Raises:
        CheckpointError: if a tensor is missing, unknown or of another shape.
    """
    if not is_theirs(document):
        return dict(values)
    parameters = {name: p.shape for name, p in model.named_parameters().items()}
    return fetch(family_of(model.config).theirs.table(model.config), parameters, InMemory(where, values))
