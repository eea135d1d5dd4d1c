"""The one rule of what is stale: a measurement counts as long as nothing that it depends on has changed.

The code that a measurement depends on is found, not listed: the module that measures, and all that it imports of this
project, however indirectly. Comments, docstrings and layout do not count, nor does what only shows results.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("c2m3_fl", "clients", "simulations")
SHOWS = ("tables", "pictures", "findings", "claims")
"""Functions of an experiment's module that show what was measured."""
_SHOWING = (
    "simulations.laboratory.drawing",
    "simulations.laboratory.experiment",
    "simulations.experiments.paper.published",
)


@lru_cache(maxsize=64)
def code_fingerprint(module: str) -> str:
    """A short name of all code of the project that a module's measurements depend on."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in _SHOWING:
            found[name], imported = _read(name)
            waiting += imported
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:12]


@lru_cache(maxsize=1024)
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """A short name of what a module does, and the modules that it imports."""
    path = _source(module)
    assert path is not None, module
    tree = _measuring(path)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(_imports(tree))


def _source(module: str) -> Path | None:
    """The file of a module, None where there is no such module; nothing is imported for it."""
    package, *inner = module.split(".")
    path = _folder(package).joinpath(*inner)
    return next((each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()), None)


@lru_cache(maxsize=8)
def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _measuring(path: Path) -> ast.Module:
    """What of a module can change a measurement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [each for each in tree.body if not (isinstance(each, ast.FunctionDef) and each.name in SHOWS)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            # What is imported from a package may be a module of it.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in PACKAGES and _source(name) is not None)
