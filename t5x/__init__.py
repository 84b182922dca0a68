"""A TensorFlow-free engine behind T5X's interface: gin names, paths, formats.

`import t5x` is light; submodules are imported when they are named, as in
`from t5x import models` or `t5x.models`.
"""

import importlib
from importlib import metadata

# The name by which the package index knows this project.
DISTRIBUTION = 'spot-prompt-tuning'


def _refuse_upstream() -> None:
  """Fails if the upstream `t5x` distribution is installed in the same place."""
  try:
    upstream = metadata.distribution('t5x')
  except metadata.PackageNotFoundError:
    return
  raise ImportError(
      f'The distribution t5x {upstream.version} is installed beside '
      f'{DISTRIBUTION}, and both provide the package t5x. Remove one of them: '
      f'pip uninstall t5x, then pip install --force-reinstall --no-deps '
      f'{DISTRIBUTION}.')


_refuse_upstream()


# T5X's other names for submodules.
_ALIASES = {'checkpointing': 'checkpoints'}


def __getattr__(name: str):
  """Imports a submodule when it is first used as an attribute."""
  if name == '__version__':
    return metadata.version(DISTRIBUTION)
  name = _ALIASES.get(name, name)
  if name.startswith('_'):
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  try:
    return importlib.import_module(f'{__name__}.{name}')
  except ModuleNotFoundError as error:
    if error.name != f'{__name__}.{name}':
      raise
    raise AttributeError(
        f'module {__name__!r} has no attribute {name!r}') from error
