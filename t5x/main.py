"""One program for all: `python -m t5x.main --run_mode=train --gin_file=...`.

Modes: train, eval, infer, precompile, export. Everything else is as in
`python -m t5x.<mode>`; `precompile` has no program of its own.
"""

from collections.abc import Callable
import importlib
from typing import Any

from absl import flags
from t5x import program

# From mode to the function that a gin file configures; modules load on demand.
FUNCTIONS = {'train': 'train', 'eval': 'evaluate', 'infer': 'infer',
             'precompile': 'precompile', 'export': 'save'}


def function_of(run_mode: str) -> Callable[..., Any]:
  """The function of a mode."""
  return getattr(
      importlib.import_module(f't5x.{run_mode}'), FUNCTIONS[run_mode])


if __name__ == '__main__':
  flags.DEFINE_enum('run_mode', None, list(FUNCTIONS), 'What to do.')
  flags.mark_flag_as_required('run_mode')
  program.run_program(lambda: function_of(flags.FLAGS.run_mode))
