"""Says in which folder an importable module is.

    python -m prompt_tuning.scripts.find_module prompt_tuning

The module itself is not run for that.
"""

from collections.abc import Sequence
import importlib.util
import os
import sys

from t5x.scripts import command


def module_folder(name: str) -> str:
  """The folder of a module, or of a package's own files.

  Args:
    name: as it is imported.

  Returns:
    A folder.

  Raises:
    ValueError: if it cannot be imported, or is in no file.
  """
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError) as error:
    raise ValueError(f'There is no module {name!r} ({error}).') from error
  if spec is None:
    raise ValueError(
        f'There is no module {name!r}; is its package installed here?')
  places = list(spec.submodule_search_locations or ())
  if not places and (spec.origin is None or not os.path.exists(spec.origin)):
    raise ValueError(f'The module {name!r} is in no file.')
  return places[0] if places else os.path.dirname(spec.origin or '')


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.find_module', __doc__)
  parser.add_argument('module', help='For instance prompt_tuning.')
  return command.run(
      parser, lambda flags: command.say(module_folder(flags.module)),
      arguments)


if __name__ == '__main__':
  sys.exit(main())
