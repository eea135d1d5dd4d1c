"""``python -m benchmarks NAME ...`` runs one benchmark; its own ``--help`` names its options."""

from __future__ import annotations

import sys

from benchmarks import activations, architectures, matching, sets

BENCHMARKS = {
    "matching": matching.main,
    "sets": sets.main,
    "activations": activations.main,
    "architectures": architectures.main,
}


def main(arguments: list[str]) -> None:
    """Run the benchmark that the first argument names."""
    if not arguments or arguments[0] not in BENCHMARKS:
        sys.exit(f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} ...")
    BENCHMARKS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
