"""Files of permutations: what ``c2m3 align`` writes and ``c2m3 apply`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from c2m3_fl.cli.checkpoints import digest
from c2m3_fl.cli.errors import InputError
from c2m3_fl.cli.reading import SAFETENSORS
from c2m3_fl.symmetry import Permutations, PermutationSpec, SpecError

_FORMAT, _VERSION = "c2m3-permutations", 1


@dataclass(frozen=True)
class PermutationFile:
    """Permutations of several networks into one universe.

    Attributes
    ----------
    spec
        The permutation groups.
    sources
        Per network the file's name and SHA-256.
    permutations
        Per network and group the indices that map it to the universe, in the sense of `PermutationSpec.apply`.
    about
        How they were found.
    """

    spec: PermutationSpec
    sources: tuple[Mapping[str, str], ...]
    permutations: tuple[Permutations, ...]
    about: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write as safetensors (tensors ``INDEX/GROUP``) or, for any other suffix, as JSON."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "networks": list(self.sources),
            "about": dict(self.about),
            "spec": json.loads(self.spec.to_json()),
        }
        if path.suffix == SAFETENSORS:
            tensors = {
                f"{i}/{group}": order for i, maps in enumerate(self.permutations) for group, order in maps.items()
            }
            save_file(tensors, path, metadata={_FORMAT: json.dumps(document)})
            return
        maps = [{group: order.tolist() for group, order in maps.items()} for maps in self.permutations]
        path.write_text(json.dumps({**document, "permutations": maps}) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> PermutationFile:
        """Read what `write` wrote.

        Raises
        ------
        InputError
            Naming the file that is none, or holds no permutations of its spec's groups.
        """
        try:
            document, maps = _safetensors(path) if path.suffix == SAFETENSORS else _json(path)
            if document.get("format") != _FORMAT or document.get("version") != _VERSION:
                raise ValueError(f"it is not {_FORMAT} of version {_VERSION}")
            spec = PermutationSpec.from_json(json.dumps(document["spec"]))
            for each in maps:
                spec.check_permutations(each)
            return cls(spec, tuple(document["networks"]), tuple(maps), document["about"])
        except (SpecError, ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise InputError(f"{path} is no file of permutations that `c2m3 align` wrote: {error}") from error

    def position(self, path: Path) -> int:
        """Which network a file is, by its content.

        Raises
        ------
        InputError
            If it is none of them.
        """
        return self._only([i for i, each in enumerate(self.sources) if each["sha256"] == digest(path)], str(path))

    def called(self, name: str) -> int:
        """Which network is meant: by the content of the file of that name, if there is one, or else by the name alone.

        Raises
        ------
        InputError
            If it is none of them, or several are called so.
        """
        path = Path(name)
        if path.is_file() and digest(path) in {each["sha256"] for each in self.sources}:
            return self.position(path)
        return self._only([i for i, each in enumerate(self.sources) if each["file"] == path.name], name)

    def _only(self, found: Sequence[int], name: str) -> int:
        names = ", ".join(each["file"] for each in self.sources)
        if not found:
            raise InputError(
                f"{name} is not what was aligned ({names}), or has changed since; --as NAME says which of them it stands for"
            )
        same = all(self.sources[each]["sha256"] == self.sources[found[0]]["sha256"] for each in found)
        if not same:
            raise InputError(f"{name} may be any of {len(found)} files of that name; give the one's path")
        return found[0]


def _safetensors(path: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    with safe_open(path, framework="pt") as file:
        document = json.loads((file.metadata() or {}).get(_FORMAT, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    maps: list[dict[str, Tensor]] = [{} for _ in document.get("networks", [])]
    for name, order in tensors.items():
        index, _, group = name.partition("/")
        maps[int(index)][group] = order
    return document, maps


def _json(path: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    document = json.loads(path.read_text(encoding="utf-8"))
    listed: Sequence[Mapping[str, list[int]]] = document.get("permutations", [])
    return document, [{group: torch.tensor(order) for group, order in maps.items()} for maps in listed]
