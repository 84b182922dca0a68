r"""Writes a dataset that TFDS does not have from files of one's own.

    python -m prompt_tuning.scripts.make_dataset --dataset=customer_reviews \
      --files=train=train.jsonl,validation=dev.tsv --tfds_data_dir=/tfds

SPoT's tasks of it then find the data with `--tfds_data_dir=/tfds`.
"""

import argparse
from collections.abc import Sequence
import sys

from prompt_tuning.spot.data import made_datasets
from t5x.scripts import command


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.make_dataset', __doc__)
  add = parser.add_argument
  add('--dataset', required=True, choices=tuple(made_datasets.FEATURES))
  add('--files', required=True, type=_files,
      help='A .jsonl, .csv or .tsv file per split: train=a.jsonl,test=b.csv. '
      'Their columns: ' + '; '.join(
          f'{name}: {", ".join(columns)}'
          for name, columns in made_datasets.FEATURES.items()))
  add('--tfds_data_dir', required=True, help='Where TFDS data are.')
  return command.run(parser, _make, arguments)


def _files(text: str) -> dict[str, str]:
  """Files by split from `train=a.jsonl,validation=b.tsv`."""
  pairs = [part.partition('=') for part in text.split(',')]
  if not all(split and path for split, _, path in pairs):
    raise argparse.ArgumentTypeError(
        f'{text!r}; expected for instance train=a.jsonl,validation=b.tsv')
  return {split: path for split, _, path in pairs}


def _make(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  folder = made_datasets.make(
      flags.dataset, flags.files, flags.tfds_data_dir)
  command.say(f'{flags.dataset} is at {folder}')


if __name__ == '__main__':
  sys.exit(main())
