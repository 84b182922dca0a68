"""Makes a whole T5X checkpoint of an earlier prompt of a run.

    python -m prompt_tuning.scripts.recreate_checkpoint \
      --model_dir=/runs/source --step=1101000 --output_dir=/exports

A run keeps its last saves only, but every prompt as a numpy file. This puts the
prompt of a step into the model that it was trained on and writes both in T5X's
native layout. The optimiser's state of that step is gone and is left out.
"""

import argparse
from collections.abc import Sequence
import os
import sys

from etils import epath
import numpy as np
from prompt_tuning import numpy_files
from t5x import checkpoints
from t5x import lazy_arrays
from t5x import state_utils
from t5x.scripts import command
from t5x.scripts import convert_checkpoint


def numpy_parameters(model_dir: str, step: int) -> dict[str, np.ndarray]:
  """The parameters that a run kept as numpy files.

  Args:
    model_dir: the run's folder.
    step: of the save.

  Returns:
    From `target/<path>` to values.

  Raises:
    ValueError: if there are none, or a file is damaged.
  """
  folder = epath.Path(model_dir) / 'numpy_checkpoints' / f'checkpoint_{step}'
  files = [file for file in sorted(folder.iterdir() if folder.is_dir() else ())
           if not file.is_dir()]  # Those are artifacts, of the same values.
  if not files:
    there = checkpoints.all_steps(os.fspath(folder.parent))
    raise ValueError(
        f'{folder} holds no numpy files. Steps that are there: {there}.')
  return {f'target/{_path(file.name)}': numpy_files.read(os.fspath(file))
          for file in files}


def _path(file_name: str) -> str:
  """The parameter that a file is named after."""
  return file_name.removesuffix('.npy').replace('.', '/')


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.recreate_checkpoint', __doc__)
  add = parser.add_argument
  add('--model_dir', required=True, help="The run's folder.")
  add('--step', type=int, required=True, help='Of the numpy files.')
  add('--base_checkpoint',
      help='The frozen model; by default what the last save stands on.')
  add('--output_dir', required=True, help='Where checkpoint_<step> goes.')
  add('--save_dtype', default='float32', choices=command.DTYPES,
      help='Of the parameters.')
  return command.run(parser, _recreate, arguments)


def _recreate(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  command.require_absent(
      checkpoints.get_checkpoint_dir(flags.output_dir, flags.step))
  if os.path.abspath(flags.output_dir) == os.path.abspath(flags.model_dir):
    raise ValueError(
        '--output_dir is the folder of the run, which goes on from its own '
        'saves only; give another folder.')
  values = numpy_parameters(flags.model_dir, flags.step)
  whole = convert_checkpoint.whole_checkpoint(
      checkpoints.find_checkpoint(flags.model_dir), flags.base_checkpoint)
  arrays = {name: array for name, array in whole.items()
            if name.startswith('target/')}
  for name, value in values.items():
    if name not in arrays or arrays[name].shape != value.shape:
      found = arrays[name].shape if name in arrays else 'nothing'
      raise ValueError(
          f'The model has {found} at {name!r}, but the numpy file of step '
          f'{flags.step} has {value.shape}. Nearest: '
          f'{state_utils.nearest(name, arrays)}.')
    arrays[name] = lazy_arrays.of_array(name, value)
  arrays['state/step'] = lazy_arrays.of_array(
      'state/step', np.int32(flags.step))
  written = checkpoints.save_t5x_checkpoint(
      flags.output_dir, arrays, save_dtype=flags.save_dtype)
  command.say(f'{written}: {len(arrays)} arrays, {len(values)} of them from '
              'numpy files')


if __name__ == '__main__':
  sys.exit(main())
