"""The group of commands, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click
import torch

from c2m3_fl import __version__
from c2m3_fl.cli.align import align_command, apply_command
from c2m3_fl.cli.barrier import barrier_command
from c2m3_fl.cli.compare import compare_command
from c2m3_fl.cli.errors import one_line
from c2m3_fl.cli.explain import explain_command
from c2m3_fl.cli.merge import merge_command

_EPILOG = """
\b
Examples:
  c2m3 merge model:Net a.safetensors b.safetensors --calibration x.npz --output merged.safetensors
  c2m3 explain 'torchvision.models:resnet18(num_classes=10)' --input 1,3,224,224
  c2m3 COMMAND --help

Exit status: 0 done, 2 usage or bad input, 1 anything else. Set C2M3_DEBUG=1 for tracebacks.
"""


@click.group(
    name="c2m3",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name="c2m3")
@click.pass_context
def commands(context: click.Context) -> None:
    """Merge neural networks of one architecture: align their neurons, average them, repair the average."""
    if context.invoked_subcommand is None:
        raise click.UsageError(f"a command is missing: {', '.join(commands.commands)}", context)


for _command in (merge_command, barrier_command, align_command, apply_command, compare_command, explain_command):
    commands.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status.

    Parameters
    ----------
    arguments
        As on the command line, without the program's name; None for those of the process.
    """
    try:
        status = commands.main(None if arguments is None else list(arguments), prog_name="c2m3", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        return _failed(error, error.exit_code, _words(error))
    except (click.Abort, KeyboardInterrupt) as error:
        return _failed(error, 1, "interrupted")
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _failed(
            error, 1, "out of memory; --group-size aligns fewer networks at once, --device cpu has more memory"
        )
    except Exception as error:  # a fault of this program: said in one line like any other
        return _failed(error, 1, f"{type(error).__name__}: {error} (C2M3_DEBUG=1 shows where)")


def _words(error: click.ClickException) -> str:
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message} (see {context.command_path} --help)" if context is not None else message


def _failed(error: BaseException, status: int, message: str) -> int:
    if os.environ.get("C2M3_DEBUG"):
        traceback.print_exception(error)
    print(f"c2m3: {one_line(message)}", file=sys.stderr)
    return status
