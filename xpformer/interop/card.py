"""The model card: ``README.md`` beside the weights, for people and for the hub."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from xpformer.interop.families import GPT2, family_of, is_theirs


def model_card(config: Any, document: Mapping[str, Any], files: Collection[str], parameters: int) -> bytes:
    """What the model is, how to use it, and what is in the directory."""
    family = family_of(config)
    text = family is GPT2
    task = "text-generation" if text else "image-classification"
    use = 'xpformer generate DIR --prompt "..."' if text else "xpformer predict DIR IMAGE"
    theirs = is_theirs(document)
    with_transformers = f"""
With `transformers`:

```python
from transformers import {family.theirs.ARCHITECTURE}

model = {family.theirs.ARCHITECTURE}.from_pretrained("DIR")
```
"""
    without = f"\n`transformers` has no class for it: its options differ from `{family.theirs.ARCHITECTURE}`.\n"
    shape = "\n".join(f"| {key} | {value} |" for key, value in _shape(config))
    listed = "\n".join(f"- `{name}`" for name in sorted({*files, "README.md"}))
    return f"""---
library_name: xpformer
pipeline_tag: {task}
tags:
- xpformer
- {document["model_type"]}
---

# {family.model.__name__}, {parameters:,} parameters

Written by xpformer {_version()}. License, training data, figures and limits are for its author to state here.

| option | value |
| --- | --- |
{shape}

## Use

```sh
{use}
```

```python
import xpformer

model = xpformer.load("DIR")
```
{with_transformers if theirs else without}
## Files

{listed}
""".encode()


def _shape(config: Any) -> list[tuple[str, object]]:
    names = (
        *(
            "vocabulary",
            "context",
            "image_size",
            "patch_size",
            "channels",
            "classes",
            "dim",
            "depth",
            "depths",
            "heads",
        ),
        *("window", "activation", "norm_eps"),
    )
    return [(name, getattr(config, name)) for name in names if hasattr(config, name)]


def _version() -> str:
    import xpformer

    return xpformer.__version__
