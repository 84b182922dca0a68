r"""SPoT's library of prompts, and which of them a task should start from.

    python -m prompt_tuning.spot add --library=/prompts \
      /runs/mnli/numpy_checkpoints/checkpoint_1110000
    python -m prompt_tuning.spot list --library=/prompts
    python -m prompt_tuning.spot retrieve --library=/prompts --k=5 \
      /runs/target/numpy_checkpoints/checkpoint_1110000

Prompts after 10,000 steps are the embeddings of their tasks. `retrieve` ranks
those of the library by how alike they are to a target's own.
"""

import argparse
from collections.abc import Sequence
import sys

from prompt_tuning import numpy_files
from prompt_tuning import prompt_files
from prompt_tuning.spot import library as prompt_library
from prompt_tuning.spot import mixing
from prompt_tuning.spot import similarity
from t5x.scripts import command


def main(arguments: Sequence[str] | None = None) -> int:
  """The program; returns its exit status."""
  parser = command.parser('prompt_tuning.spot', __doc__)
  commands = parser.add_subparsers(dest='command', required=True)
  for name, (action, text) in _COMMANDS.items():
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(action=action)
    sub.add_argument('--library', dest='folder', required=True,
                     help='The folder of prompts.')
    _ARGUMENTS[name](sub)
  return command.run(parser, lambda flags: flags.action(flags), arguments)


def _add(flags: argparse.Namespace) -> None:
  """Copies prompts into the library."""
  if flags.name and len(flags.prompts) > 1:
    raise ValueError('--name is for one prompt; leave it out for several.')
  library = prompt_library.PromptLibrary(flags.folder)
  for path in flags.prompts:
    command.say(library.add(path, flags.name))


def _list(flags: argparse.Namespace) -> None:
  """One line per prompt."""
  library = prompt_library.PromptLibrary(flags.folder)
  for name in library.names():
    record = library.read(name).record
    figures = '  '.join(f'{key} {value:.4g}'
                        for key, value in sorted(record.metrics.items()))
    command.say(f'{name}  {list(record.shape)}  {record.task or "-"}  '
                f'step {record.step}  {figures}'.rstrip())


def _verify(flags: argparse.Namespace) -> int:
  """Reads everything; 1 if something cannot be used."""
  library = prompt_library.PromptLibrary(flags.folder)
  problems = library.verify()
  for name, problem in problems.items():
    command.say(f'{name}: {problem}')
  command.say(f'{len(library.names())} prompts, {len(problems)} of them bad')
  return int(bool(problems))


def _remove(flags: argparse.Namespace) -> None:
  """Removes prompts by name."""
  for name in flags.names:
    prompt_library.PromptLibrary(flags.folder).remove(name)


def _retrieve(flags: argparse.Namespace) -> None:
  """The most similar prompts, and their mean if it is wanted."""
  if flags.average:
    command.require_absent(flags.average)
  library = prompt_library.PromptLibrary(flags.folder)
  found = library.similar(prompt_files.read(flags.prompt), flags.measure)
  for name in list(found)[:flags.k]:
    command.say(f'{found[name]:8.4f}  {name}')
  if flags.average:
    weights = mixing.similarity_weights(found, flags.k)
    mean = mixing.weighted_average(
        [library.read(name).prompt for name in weights],
        list(weights.values()))
    numpy_files.write(flags.average, mean)
    command.say(f'{flags.average}: the mean of {len(weights)}, weighted by '
                'similarity')


def _retrieve_arguments(parser: argparse.ArgumentParser) -> None:
  """What `retrieve` takes."""
  add = parser.add_argument
  add('prompt', help="The target's own prompt, after few steps.")
  add('--k', type=int, default=5, help='How many are wanted.')
  add('--measure', default='token_pairs', choices=tuple(similarity.MEASURES))
  add('--average', help='A numpy file for the mean of the k, weighted by '
      'similarity: a PROMPT_FILE.')


def _add_arguments(parser: argparse.ArgumentParser) -> None:
  """What `add` takes."""
  parser.add_argument('prompts', nargs='+', help="Artifacts, or runs' folders "
                      'numpy_checkpoints/checkpoint_N.')
  parser.add_argument('--name', help='Instead of <task>-seed<seed>-step<step>.')


_COMMANDS = {
    'add': (_add, 'Copies prompts into the library.'),
    'list': (_list, 'Lists the prompts with what they were trained on.'),
    'verify': (_verify, 'Reads everything and says what is damaged.'),
    'remove': (_remove, 'Removes prompts.'),
    'retrieve': (_retrieve, 'Ranks the prompts by similarity to a task.'),
}
_ARGUMENTS = {
    'add': _add_arguments,
    'list': lambda parser: None,
    'verify': lambda parser: None,
    'remove': lambda parser: parser.add_argument('names', nargs='+'),
    'retrieve': _retrieve_arguments,
}

if __name__ == '__main__':
  sys.exit(main())
