"""The shape of the source: who imports whom, what is forbidden, what is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "xpformer").rglob("*.py"), *(ROOT / "backends").rglob("*.py")])
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))

BASE = {"array", "errors", "rng"}
# what each part may import of xpformer, beside itself
ALLOWED: dict[str, set[str]] = {
    "array": set(),
    "errors": set(),
    "rng": set(),
    "functional": BASE,
    "backend": BASE | {"functional"},
    "parameters": BASE | {"functional", "backend"},
    "initializers": BASE | {"parameters"},
    "layers": BASE | {"functional", "backend", "parameters", "initializers"},
    "models": BASE | {"functional", "layers", "parameters", "initializers"},
    "optim": BASE | {"functional", "parameters"},
    "data": BASE,
}
ABOVE = {"training", "analysis", "interop", "generation", "cli", "recipes"}
LENT = {"models": {"interop"}}
"""What a part may import in a function all the same: the bodies of from_pretrained and save_pretrained."""
NOT_BELOW_THE_COMMAND_LINE = {"cli"}
ARRAY_LIBRARIES = {"numpy", "torch", "cupy", "jax", "array_api_strict", "numba", "scipy", "dask", "mlx"}


def part(path: Path) -> str:
    """``functional`` of xpformer/functional/linear.py, ``array`` of xpformer/array.py."""
    return path.relative_to(ROOT / "xpformer").parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether it is imported when the module is (not for types only, not in a function)."""
    module = tree(path)
    nested = {
        id(inner)
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(module):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            yield name, id(node) not in nested


def own_parts(path: Path, *, deferred: bool) -> set[str]:
    return {
        name.split(".")[1] for name, at_once in imports(path) if name.startswith("xpformer.") and (at_once or deferred)
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    if path.is_relative_to(ROOT / "backends"):
        assert own_parts(path, deferred=True) <= BASE | {"functional", "backend", "optim"}
        return
    mine = part(path)
    if mine in ALLOWED:
        assert own_parts(path, deferred=False) <= ALLOWED[mine] | {mine}
        assert not own_parts(path, deferred=True) & (ABOVE - LENT.get(mine, set()))
    elif mine not in ("cli", "__main__"):
        assert not own_parts(path, deferred=True) & NOT_BELOW_THE_COMMAND_LINE


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_backend(path: Path) -> None:
    if path.is_relative_to(ROOT / "xpformer"):
        assert not [name for name, _ in imports(path) if name.startswith("xpformer_")]


PORTABLE = [p for p in SOURCES if p.is_relative_to(ROOT / "xpformer") and part(p) in {"functional", "layers", "models", "optim"}]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("path", PORTABLE, ids=lambda p: str(p.relative_to(ROOT)))
def test_portable_code_names_no_array_library(path: Path) -> None:
    assert not {name.split(".")[0] for name, _ in imports(path)} & ARRAY_LIBRARIES
    names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    assert not names & {"np", "numpy", "torch", "cupy", "jax"}


FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", [*SOURCES, *RECIPES], ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_runs_code_from_a_file(path: Path) -> None:
    assert not {name.split(".")[0] for name, _ in imports(path)} & FORBIDDEN_MODULES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS), ast.unparse(node)
            assert not any(k.arg == "allow_pickle" for k in node.keywords), ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_state_is_not_global(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    assert not [node for node in ast.walk(tree(path)) if isinstance(node, ast.Global)]


def modules() -> list[str]:
    found = []
    for root, name in ((ROOT / "xpformer", "xpformer"), *((p, p.name) for p in sorted((ROOT / "backends").iterdir()) if p.is_dir())):  # fmt: skip  # noqa: E501
        if (root / "__init__.py").exists():
            found += [name, *(m.name for m in pkgutil.walk_packages([str(root)], f"{name}."))]
    return [name for name in found if not name.endswith("__main__")]


NEEDS = {
    "xpformer_jax": "jax",
    "xpformer_torch": "torch",
    "xpformer_strict": "array_api_strict",
    "xpformer_cupy": "cupy",
}


@pytest.mark.parametrize("name", modules())
def test_what_all_lists_is_there(name: str) -> None:
    root = name.partition(".")[0]
    if root in NEEDS:
        pytest.importorskip(NEEDS[root])
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(listed) == len(set(listed))
    assert [entry for entry in listed if not hasattr(module, entry)] == []
    if name in ("xpformer.layers", "xpformer.optim"):  # all public layers and update rules are exported
        kinds = (importlib.import_module(m) for m in modules() if m.startswith(f"{name}.") and "._" not in m)
        public = {
            n
            for m in kinds
            for n, c in vars(m).items()
            if inspect.isclass(c) and c.__module__ == m.__name__ and not n.startswith("_")
        }
        assert public <= set(listed)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    missing = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            overload = any("overload" in ast.unparse(d) or ".setter" in ast.unparse(d) for d in node.decorator_list)
            if ast.get_docstring(node) is None and not overload:
                missing.append(f"{prefix}{node.name}")
            if isinstance(node, ast.ClassDef) and "Protocol" not in [ast.unparse(b) for b in node.bases]:
                visit(node.body, f"{prefix}{node.name}.")

    visit(tree(path).body, "")
    assert missing == []


def test_every_operation_derives_its_backward() -> None:
    from xpformer.functional import OPERATIONS

    for name, op in OPERATIONS.items():
        assert "Backward" in op.derivation, name
        assert re.search(r"\(\d+\)", op.derivation), f"{name}: no numbered equation"
        numbers = set(re.findall(r"\((\d+)\)", op.derivation))
        source = (ROOT / "xpformer" / "functional" / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)[2]
        comments = " ".join(
            token.string
            for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
            if token.type == tokenize.COMMENT
        )
        cited = set(re.findall(r"(?<!\w)\((\d+)\)", comments))
        assert cited <= numbers, f"{name}: the code cites equations {sorted(cited - numbers)} that are not derived"
