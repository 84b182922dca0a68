r"""Shows what the tokens of a prompt are near to.

    python -m prompt_tuning.scripts.inspect_prompt prompt.npy \
      --checkpoint_dir=/checkpoints/checkpoint_1100000 --vocabulary=spiece.model

Of every token its length and the vocabulary entries that are nearest by cosine;
without a vocabulary file as ids.
"""

import argparse
from collections.abc import Callable, Sequence
import sys

import numpy as np
from prompt_tuning import interpretation
from prompt_tuning import prompt_files
from prompt_tuning.scripts import variables
import rich.console
import rich.table
import sentencepiece
from t5x.scripts import command

_WIDTH = 120  # Of a table that goes to a file.


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.inspect_prompt', __doc__)
  add = parser.add_argument
  add('prompt', help='A prompt of any format that PROMPT_FILE takes.')
  add('--checkpoint_dir', required=True,
      help='The model: a checkpoint of any layout, or a folder of them.')
  add('--embeddings_path', default='token_embedder/embedding',
      help='The variable that is the embedding table.')
  add('--vocabulary', help='A SentencePiece model; without it ids are shown.')
  add('--neighbours', type=int, default=5, help='Shown of every token.')
  add('--labels', nargs='*', default=[],
      help='Words to look for among the nearest; needs --vocabulary.')
  return command.run(parser, _inspect, arguments)


def _inspect(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  if flags.labels and not flags.vocabulary:
    raise ValueError('--labels are words, which only --vocabulary turns into '
                     'tokens; give both.')
  vocabulary = flags.vocabulary and _vocabulary(flags.vocabulary)
  prompt = prompt_files.read(flags.prompt)
  found = interpretation.neighbours(
      prompt, variables.find(flags.checkpoint_dir, flags.embeddings_path),
      flags.neighbours)
  console = rich.console.Console(
      width=None if sys.stdout.isatty() else _WIDTH)
  console.print(_table(prompt, found, _names(vocabulary)), markup=False)
  lengths = interpretation.norms(prompt)
  command.say(
      f'{len(prompt)} tokens of width {prompt.shape[1]}; length on average '
      f'{lengths.mean():.4g}, of embeddings {found.mean_norm:.4g}.')
  for label in flags.labels:
    places = interpretation.places_near(found, vocabulary.encode(label))
    command.say(f'{label!r} is near to {len(places)} tokens: {places}')


def _vocabulary(path: str) -> sentencepiece.SentencePieceProcessor:
  """Reads a SentencePiece model."""
  try:
    return sentencepiece.SentencePieceProcessor(model_file=path)
  except RuntimeError as error:
    raise ValueError(
        f'--vocabulary {path} is no SentencePiece model: {error}') from error


def _names(
    vocabulary: sentencepiece.SentencePieceProcessor | None,
) -> Callable[[int], str]:
  """From a token id to what is shown; extra ids and padding have no piece."""
  def name(token: int) -> str:
    if vocabulary is None or token >= vocabulary.get_piece_size():
      return f'<{token}>'
    return vocabulary.id_to_piece(token)

  return name


def _table(
    prompt: np.ndarray, found: interpretation.Neighbours,
    name: Callable[[int], str],
) -> rich.table.Table:
  """A row per token."""
  table = rich.table.Table(box=None, pad_edge=False)
  table.add_column('token', justify='right')
  table.add_column('length', justify='right')
  table.add_column('nearest, with cosine', overflow='fold')
  for place, length in enumerate(interpretation.norms(prompt)):
    near = '  '.join(
        f'{name(int(token))} {cosine:.2f}' for token, cosine in zip(
            found.ids[place], found.cosines[place], strict=True))
    table.add_row(str(place), f'{length:.4g}', near)
  return table


if __name__ == '__main__':
  sys.exit(main())
