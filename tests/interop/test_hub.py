"""Models by their name on the hub, with a library that answers as huggingface_hub does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import huggingface_hub

import xpformer
from tests.interop import theirs
from xpformer.errors import CheckpointError
from xpformer.interop.hub import is_name


def test_a_name_is_fetched_and_read_through_the_links_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = theirs.save(theirs.vit(), tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    asked: list[dict[str, Any]] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append({"name": name, "revision": revision})
        assert "*.safetensors" in allow_patterns
        assert not any("bin" in pattern for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert xpformer.load("google/vit-base-patch16-224").count_parameters() == 3_177
    assert xpformer.load("google/vit", revision="main").config.dim == 12
    expected = [("google/vit-base-patch16-224", None), ("google/vit", "main")]
    assert [(a["name"], a["revision"]) for a in asked] == expected


def test_the_cache_is_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own code, on a cache as it lays it out."""
    cache = tmp_path / "models--owner--name"
    theirs.save(theirs.gpt2(), cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert xpformer.load("owner/name").config.vocabulary == 23
    with pytest.raises(CheckpointError, match="nobody/nothing: is no run and no directory here, and cannot be had"):
        xpformer.load("nobody/nothing")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"pip install 'xpformer\[hub\]'"):
        xpformer.load("owner/name")


def test_paths_are_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert [n for n in ("gpt2", "owner/name", "runs/a", "/a", "../a", "a/b/c", "", "a/.b") if is_name(n)] == [
        "gpt2",
        "owner/name",
    ]
