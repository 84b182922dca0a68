"""Where the demo's files are, for gin."""

import pathlib

_DATA = pathlib.Path(__file__).parent / 'data'


def checkpoint() -> str:
  """The pretrained model that ships with the package."""
  found = sorted(_DATA.glob('checkpoint_*'))
  if not found:
    raise FileNotFoundError(
        f'{_DATA} holds no checkpoint_<step>; the installation is incomplete.')
  return str(found[-1])
