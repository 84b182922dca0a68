"""Makes a prompt of randomly drawn rows of a checkpoint's embedding table.

    python -m prompt_tuning.scripts.subsample_vocab \
      --checkpoint_dir=/checkpoints/checkpoint_1100000 \
      --prompt_length=100 --output_path=prompt.npy

Rows are drawn with replacement among the first, which are the most frequent
tokens of a SentencePiece vocabulary; only those are read.
"""

import argparse
from collections.abc import Sequence
import sys

import numpy as np
from prompt_tuning.scripts import variables
from t5x.scripts import command


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.subsample_vocab', __doc__)
  add = parser.add_argument
  add('--checkpoint_dir', required=True,
      help='A checkpoint of any layout, or a folder of them.')
  add('--embeddings_path', default='token_embedder/embedding',
      help='The variable that is the table.')
  add('--prompt_length', type=int, default=100, help='Rows drawn.')
  add('--population_size', type=int, default=5000,
      help='Draw among the first rows; 0 or less draws among all.')
  add('--seed', type=int, default=42, help='Of the draw.')
  add('--restore_dtype', default='float32', choices=command.DTYPES)
  add('--output_path', required=True, help='The file that is written.')
  return command.run(parser, _subsample, arguments)


def _subsample(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  command.require_absent(flags.output_path)
  if flags.prompt_length < 1:
    raise ValueError(
        f'--prompt_length is {flags.prompt_length}; expected at least 1.')
  table = variables.find(flags.checkpoint_dir, flags.embeddings_path)
  if len(table.shape) != 2:
    raise ValueError(
        f'{table.name} has shape {list(table.shape)}; expected a table [V, H]. '
        'Name it with --embeddings_path.')
  size = table.shape[0]
  if flags.population_size > 0:
    size = min(size, flags.population_size)
  rows = np.random.default_rng(flags.seed).choice(size, flags.prompt_length)
  population = table.read_slice((slice(0, size), slice(None)))
  variables.write(flags.output_path, population[rows], flags.restore_dtype)


if __name__ == '__main__':
  sys.exit(main())
