"""Variables of a checkpoint by the names that the tools accept."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from prompt_tuning import numpy_files
from t5x import checkpoints
from t5x import state_utils
from t5x.scripts import command


def normalized(variable_path: str) -> str:
  """A checkpoint's name of a variable.

  Args:
    variable_path: `target/`, and slashes around it, may be there or not.

  Returns:
    `target/...`, or `state/...` as it stands.
  """
  path = variable_path.strip('/')
  return path if path.startswith(('target/', 'state/')) else f'target/{path}'


def find(
    checkpoint_dir: str, variable_path: str) -> checkpoints.LazyArray:
  """One variable, unread.

  Args:
    checkpoint_dir: a checkpoint, or a folder of them: then the last.
    variable_path: see `normalized`.

  Returns:
    The variable.

  Raises:
    ValueError: if there is none, with the nearest names.
  """
  directory = checkpoints.find_checkpoint(checkpoint_dir)
  arrays: Mapping[str, checkpoints.LazyArray] = checkpoints.open_checkpoint(
      directory)
  name = normalized(variable_path)
  if name not in arrays:
    raise ValueError(
        f'{directory} has no variable {name!r}. Nearest: '
        f'{state_utils.nearest(name, arrays)}.')
  return arrays[name]


def write(output_path: str, values: Any, dtype: str) -> None:
  """Writes a numpy file that is not there yet.

  Args:
    output_path: the file; its folder is made if it is not there.
    values: numbers.
    dtype: what they are converted to. A numpy file has no bfloat16: they are
      rounded to it and kept as float32.

  Raises:
    ValueError: if the file is there, or a value is not finite.
  """
  command.require_absent(output_path)
  values = np.asarray(values)
  if dtype == 'bfloat16':
    values = values.astype(jnp.bfloat16)
  kept = np.float32 if dtype == 'bfloat16' else np.dtype(dtype)
  numpy_files.write(output_path, values.astype(kept))
  command.say(f'{output_path}: {np.dtype(kept).name}{list(values.shape)}')
