"""Imports inside of `c2m3_fl.symmetry` point one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import c2m3_fl.symmetry

_ROOT = Path(c2m3_fl.symmetry.__file__).parent
_PACKAGE = c2m3_fl.symmetry.__name__


def _imports() -> dict[str, set[str]]:
    """For each module, those of the package that it imports, be it inside of a function."""
    names = {
        ".".join((_PACKAGE, *path.relative_to(_ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in _ROOT.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        targets = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` imports the module; `from module import name` imports the module too.
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= (inner & set(names)) or {node.module}
        found[name] = targets & set(names)
    return found


def test_the_files_of_the_package_do_not_import_each_other_in_a_circle() -> None:
    imports = _imports()
    assert f"{_PACKAGE}.groups" in imports[f"{_PACKAGE}.trace"]
    TopologicalSorter(imports).prepare()


def test_the_data_know_nothing_of_what_works_on_them() -> None:
    imports = _imports()
    assert not imports[f"{_PACKAGE}.axes"]
    assert imports[f"{_PACKAGE}.groups"] == {f"{_PACKAGE}.axes"}
