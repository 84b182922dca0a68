"""What the tools have in common: one line and exit 2 on a bad input."""

import argparse
from collections.abc import Callable, Sequence
import os
import sys

DTYPES = ('float32', 'bfloat16', 'float16')


def parser(module: str, docstring: str) -> argparse.ArgumentParser:
  """The parser of a tool, without arguments yet.

  Args:
    module: its full name.
    docstring: its first line describes the tool.

  Returns:
    The parser.
  """
  return argparse.ArgumentParser(
      prog=f'python -m {module}', description=docstring.splitlines()[0])


def run(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None,
) -> int:
  """Parses a command line and acts on it.

  Args:
    parser: of the tool.
    action: what it does; returns an exit status, None for 0.
    arguments: what follows the name of the tool; None takes the process's.

  Returns:
    The exit status.
  """
  parsed = parser.parse_args(arguments)
  try:
    return action(parsed) or 0
  except (ValueError, OSError) as error:
    sys.stderr.write(f'error: {" ".join(str(error).split())}\n')
    return 2


def say(text: str) -> None:
  """A line on standard output."""
  sys.stdout.write(f'{text}\n')


def require_absent(path: str) -> None:
  """Fails if a file or folder is there, as nothing is overwritten.

  Args:
    path: where something is to be written.

  Raises:
    ValueError: naming it.
  """
  if os.path.exists(path):
    raise ValueError(f'{path} is there already; give another name.')
