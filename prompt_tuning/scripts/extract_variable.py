"""Writes one variable of a checkpoint as a numpy file.

    python -m prompt_tuning.scripts.extract_variable \
      --checkpoint_dir=/checkpoints/checkpoint_1100000 \
      --variable_path=token_embedder/embedding --output_path=embedding.npy

The other variables are not read.
"""

import argparse
from collections.abc import Sequence
import sys

from prompt_tuning.scripts import variables
from t5x.scripts import command


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.extract_variable', __doc__)
  add = parser.add_argument
  add('--checkpoint_dir', required=True,
      help='A checkpoint of any layout, or a folder of them.')
  add('--variable_path', required=True,
      help='For instance token_embedder/embedding.')
  add('--restore_dtype', default='float32', choices=command.DTYPES)
  add('--output_path', required=True, help='The file that is written.')
  return command.run(parser, _extract, arguments)


def _extract(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  command.require_absent(flags.output_path)
  variable = variables.find(flags.checkpoint_dir, flags.variable_path)
  variables.write(flags.output_path, variable.get(), flags.restore_dtype)


if __name__ == '__main__':
  sys.exit(main())
