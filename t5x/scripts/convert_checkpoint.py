"""Writes any checkpoint in T5X's native layout, for published tools.

    python -m t5x.scripts.convert_checkpoint \
      --checkpoint_dir=/runs/source --output_dir=/exports

The source may be T5X's native layout, T5X's by Orbax, or a run of ours. A
prompt run saves what it trains only; the rest is read from the frozen model
that it stands on. Arrays are read and written one chunk at a time.
"""

import argparse
from collections.abc import Sequence
import sys

from t5x import checkpoint_folders
from t5x import checkpoints
from t5x import optimizer_slots
from t5x.scripts import command

LazyArray = checkpoints.LazyArray


def whole_checkpoint(
    source: str, base: str | None) -> dict[str, LazyArray]:
  """A checkpoint with the frozen model that it stands on.

  Args:
    source: `checkpoint_<step>` of any layout.
    base: the frozen model; None takes the one that the source records.

  Returns:
    From T5X's names to unread arrays.

  Raises:
    CheckpointError: if one of them cannot be read.
  """
  save = checkpoints.Save(source)
  if base is None and checkpoint_folders.is_run_save(source):
    record = save.record.base
    base = None if record is None else record.path
    if record is not None and base is None:
      raise checkpoints.CheckpointError(
          f'{source} stands on a frozen model that was initialised, not read; '
          'it cannot be completed.')
  arrays = optimizer_slots.with_t5x_names(save.arrays)
  return arrays if base is None else _parameters(base) | arrays


def _parameters(base: str) -> dict[str, LazyArray]:
  """The parameters of a frozen model."""
  return {name: array for name, array in checkpoints.open_checkpoint(
      checkpoints.find_checkpoint(base)).items() if name.startswith('target/')}


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('t5x.scripts.convert_checkpoint', __doc__)
  add = parser.add_argument
  add('--checkpoint_dir', required=True,
      help='checkpoint_<step>, or a folder of them: then the last.')
  add('--step', type=int, help='Which of them.')
  add('--base_checkpoint', help='The frozen model; by default the recorded.')
  add('--output_dir', required=True, help='Where checkpoint_<step> goes.')
  add('--save_dtype', default='float32', choices=(*command.DTYPES, 'keep'),
      help='Of the parameters.')
  return command.run(parser, _convert, arguments)


def _convert(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  source = checkpoints.find_checkpoint(flags.checkpoint_dir, flags.step)
  arrays = whole_checkpoint(source, flags.base_checkpoint)
  step = int(arrays['state/step'].get())
  command.require_absent(
      checkpoints.get_checkpoint_dir(flags.output_dir, step))
  written = checkpoints.save_t5x_checkpoint(
      flags.output_dir, arrays,
      save_dtype=None if flags.save_dtype == 'keep' else flags.save_dtype)
  command.say(f'{written}: {len(arrays)} arrays of {source}')


if __name__ == '__main__':
  sys.exit(main())
