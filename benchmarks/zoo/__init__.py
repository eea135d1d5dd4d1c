"""The networks of the table of architectures; those of packages that are not installed are left out."""

from importlib.util import find_spec

from benchmarks.zoo.architecture import Architecture, Example, Table
from benchmarks.zoo.vision import VISION
from benchmarks.zoo.written import WRITTEN

ARCHITECTURES: Table = {**VISION, **WRITTEN}
if find_spec("transformers") is not None:
    from benchmarks.zoo.language import LANGUAGE

    ARCHITECTURES |= {name: it for name, it in LANGUAGE.items() if it.sent is None or find_spec("peft") is not None}
if find_spec("timm") is not None:
    from benchmarks.zoo.timm_models import TIMM

    ARCHITECTURES |= TIMM

__all__ = ["ARCHITECTURES", "Architecture", "Example"]
