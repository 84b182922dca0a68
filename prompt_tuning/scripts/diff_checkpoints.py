"""Compares two checkpoints, array by array.

    python -m prompt_tuning.scripts.diff_checkpoints FIRST SECOND

One array of each is in memory at a time. Exits with 1 if an array that both
have differs; an array that only one has is a warning.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import json
import logging
import pathlib
import sys
from typing import Any

import numpy as np
from t5x import checkpoints
from t5x import optimizer_slots
from t5x.scripts import command

LazyArray = checkpoints.LazyArray

CHECKS = ('missing', 'shape', 'value')


def compare(
    first: Mapping[str, LazyArray],
    second: Mapping[str, LazyArray],
    names: Iterable[str],
    checks: Sequence[str],
) -> dict[str, dict[str, Any]]:
  """What two checkpoints have at each name.

  Args:
    first: one.
    second: the other.
    names: what is compared.
    checks: of `CHECKS`, which are made.

  Returns:
    From name to check to its outcome: 'match' or 'mismatch'; of values also the
    share that is close and the largest error.
  """
  report: dict[str, dict[str, Any]] = {}
  for name in names:
    row: dict[str, Any] = {}
    report[name] = row
    mine, other = first.get(name), second.get(name)
    if 'missing' in checks:
      row['missing'] = _status(mine is not None and other is not None)
    if mine is None or other is None:
      continue
    if 'shape' in checks:
      row['shape'] = _status(mine.shape == other.shape)
    if 'value' in checks and mine.shape == other.shape:
      row['value'] = _compare_values(mine.get(), other.get())
  return report


def _status(same: bool) -> str:
  """How a report says it."""
  return 'match' if same else 'mismatch'


def _compare_values(mine: np.ndarray, other: np.ndarray) -> dict[str, Any]:
  """Closeness of two arrays of a shape."""
  mine, other = mine.astype(np.float64), other.astype(np.float64)
  close = np.isclose(mine, other)
  return {
      'status': _status(bool(close.all())),
      'percentage': 100.0 * float(close.mean()) if close.size else 100.0,
      'max_error': float(np.max(np.abs(mine - other), initial=0.0)),
  }


def differs(row: Mapping[str, Any]) -> bool:
  """Whether an array that both checkpoints have is not the same."""
  return (row.get('shape') == 'mismatch'
          or row.get('value', {}).get('status') == 'mismatch')


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.diff_checkpoints', __doc__)
  add = parser.add_argument
  add('first', help='A checkpoint of any layout, or a folder of them.')
  add('second', help='Another.')
  add('--frac', type=float, default=1.0,
      help='Compare this share of the arrays, drawn at random.')
  add('--seed', type=int, default=0, help='Of the draw.')
  add('--check', action='append', choices=CHECKS,
      help='Make this check only; repeatable.')
  add('--compare_step', action='store_true', help='Compare state/step too.')
  add('--limit_to_params', action='store_true', help='Compare target only.')
  add('--output', help='Write a report in JSON to this file.')
  return command.run(parser, _diff, arguments)


def _diff(flags: argparse.Namespace) -> int:
  """Does what the flags ask for."""
  if not 0 < flags.frac <= 1:
    raise ValueError(f'--frac is {flags.frac}; expected more than 0, up to 1.')
  if flags.output:
    command.require_absent(flags.output)
  first, second = (
      optimizer_slots.with_t5x_names(checkpoints.open_checkpoint(
          checkpoints.find_checkpoint(path)))
      for path in (flags.first, flags.second))
  names = [name for name in sorted(first.keys() | second.keys())
           if (flags.compare_step or name != 'state/step')
           and (name.startswith('target/') or not flags.limit_to_params)]
  if flags.frac < 1:
    count = max(1, round(flags.frac * len(names)))
    chosen = np.random.default_rng(flags.seed).choice(
        len(names), count, replace=False)
    names = [names[i] for i in sorted(chosen)]
  report = compare(first, second, names, flags.check or CHECKS)
  if flags.output:
    pathlib.Path(flags.output).write_text(json.dumps(report, indent=1))
  for name, row in report.items():
    if row.get('missing') == 'mismatch':
      logging.warning('%s is in one of them only', name)
    if differs(row):
      command.say(f'{name}: {json.dumps(row)}')
  different = sum(map(differs, report.values()))
  command.say(f'{len(report)} arrays compared, {different} differ')
  return int(different > 0)


if __name__ == '__main__':
  sys.exit(main())
