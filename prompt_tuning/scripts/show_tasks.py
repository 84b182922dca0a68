"""Lists the tasks that there are, or shows one as a model sees it.

    python -m prompt_tuning.scripts.show_tasks
    python -m prompt_tuning.scripts.show_tasks --family=spot_glue
    python -m prompt_tuning.scripts.show_tasks --task=spot_glue_rte_v200 \
      --task_feature_lengths=inputs=512,targets=16 --tfds_data_dir=/tfds

Listing opens no data. Showing one prints examples as text and as token ids, and
how long many of them are.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import sys

from prompt_tuning.data import descriptions
from prompt_tuning.data import features
import rich.console
import rich.table
import seqio
from t5x import datasets
from t5x import inspection
from t5x.scripts import command

# What registers the tasks of a family.
FAMILIES = {
    'glue': 'prompt_tuning.data.glue',
    'super_glue': 'prompt_tuning.data.super_glue',
    'glue_transfer': 'prompt_tuning.data.glue_transfer',
    'qa': 'prompt_tuning.data.qa',
    'summarization': 'prompt_tuning.data.summarization',
    'c4': 'prompt_tuning.data.c4',
    'spot_c4': 'prompt_tuning.spot.data.c4',
    'spot_generation': 'prompt_tuning.spot.data.generation',
    'spot_glue': 'prompt_tuning.spot.data.glue',
    'spot_mrqa': 'prompt_tuning.spot.data.mrqa',
    'spot_multiple_choice': 'prompt_tuning.spot.data.multiple_choice',
    'spot_nli': 'prompt_tuning.spot.data.nli',
    'spot_qa': 'prompt_tuning.spot.data.qa',
    'spot_sentiment': 'prompt_tuning.spot.data.sentiment',
    'spot_summarization': 'prompt_tuning.spot.data.summarization',
    'spot_super_glue': 'prompt_tuning.spot.data.super_glue',
    'spot_translation': 'prompt_tuning.spot.data.translation',
    'spot_sets': 'prompt_tuning.spot.data.sets',
    'recycling_c4': 'prompt_tuning.recycling.data.c4',
    'recycling_imdb': 'prompt_tuning.recycling.data.imdb',
    'recycling_qqp': 'prompt_tuning.recycling.data.qqp',
    'recycling_record': 'prompt_tuning.recycling.data.record',
    'recycling_sst2': 'prompt_tuning.recycling.data.sst2',
    'perceptron': 'prompt_tuning.extended.perceptron.data.tasks',
    'demo': 'prompt_tuning.demo.tasks',
}
_WIDTH = 200  # Of a table that goes to a file.


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.show_tasks', __doc__)
  add = parser.add_argument
  add('--family', choices=tuple(FAMILIES), help='List only this one.')
  add('--task', help='Show this task or mixture.')
  add('--module_import', action='append', default=[],
      help='Another module that registers tasks; may be repeated.')
  add('--split', default='train', help='Of the examples that are shown.')
  add('--examples', type=int, default=3, help='How many are shown.')
  add('--statistics', type=int, default=1000,
      help='How many are measured, from the first.')
  add('--task_feature_lengths', type=_lengths,
      help='For instance inputs=512,targets=16: what would be cut.')
  add('--tfds_data_dir', help='Where TFDS data are.')
  return command.run(parser, _show, arguments)


def _lengths(text: str) -> dict[str, int]:
  """Tokens per feature from `inputs=512,targets=16`."""
  try:
    pairs = [part.split('=') for part in text.split(',')]
    return {name: int(length) for name, length in pairs}
  except ValueError as error:
    raise argparse.ArgumentTypeError(
        f'{text!r}; expected for instance inputs=512,targets=16') from error


def _show(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  datasets.set_data_dirs(flags.tfds_data_dir)
  modules = dict(FAMILIES)
  if flags.family:
    modules = {flags.family: FAMILIES[flags.family]}
  modules |= {module: module for module in flags.module_import}
  if flags.task:
    for _ in _families(modules):
      pass
    _show_task(flags)
    return
  console = rich.console.Console(
      width=None if sys.stdout.isatty() else _WIDTH)
  for family, names in _families(modules):
    console.print(_table(family, names))


def _families(
    modules: Mapping[str, str]) -> Iterator[tuple[str, Sequence[str]]]:
  """Imports families; yields the names that each registers."""
  known: set[str] = set()
  for family, module in modules.items():
    datasets.import_module(module)
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    yield family, sorted(names - known)
    known |= names


def _table(family: str, names: Sequence[str]) -> rich.table.Table:
  """The tasks and mixtures of a family."""
  shown = [name for name in names if not any(
      name.startswith(prefix) and name.removeprefix(prefix) in names
      for prefix in features.MODEL_TO_FEATURES if prefix)]
  others = ' and '.join(filter(None, features.MODEL_TO_FEATURES))
  title = f'{family}: {len(names)}' + (
      '' if len(shown) == len(names) else
      f', {len(names) - len(shown)} of them these with {others} before them')
  table = rich.table.Table(
      title=title, title_justify='left', box=None, pad_edge=False)
  # A name must be whole, to be copied.
  table.add_column('task or mixture', no_wrap=True)
  for column in ('source', 'splits', 'label words', 'metrics'):
    table.add_column(column, overflow='fold')
  for name in shown:
    row = descriptions.describe(datasets.provider_of(name))
    splits = '' if row.splits is None else ', '.join(row.splits)
    table.add_row(row.name, row.source, splits, ', '.join(row.words),
                  ', '.join(row.metrics))
  return table


def _show_task(flags: argparse.Namespace) -> None:
  """One task: what is known of it, examples, lengths."""
  provider = datasets.provider_of(flags.task)
  descriptions.require_data(provider)
  found = descriptions.describe(provider)
  for what, value in (
      ('source', found.source), ('splits', ', '.join(provider.splits)),
      ('label words', ', '.join(found.words)),
      ('metrics', ', '.join(found.metrics))):
    command.say(f'{what:12}{value or "-"}')
  rows = descriptions.examples(
      provider, flags.split, max(flags.examples, flags.statistics), None)
  for number, row in enumerate(rows[:flags.examples], 1):
    command.say(f'example {number} of {flags.split}:')
    for line in inspection.example(
        row, provider.output_features, flags.task_feature_lengths):
      command.say(line)
  _show_lengths(rows[:flags.statistics], provider, flags)


def _show_lengths(
    rows: Sequence[inspection.Row],
    provider: seqio.Task | seqio.Mixture,
    flags: argparse.Namespace,
) -> None:
  """How long examples are, and how many would be cut."""
  command.say(f'tokens of {len(rows):,} examples:')
  command.say(f'  {"":10}{"least":>8}{"median":>8}{"mean":>8}{"95 %":>8}'
              f'{"most":>8}')
  for row in descriptions.length_statistics(
      rows, list(provider.output_features), flags.task_feature_lengths):
    cut = '' if row.cut is None else (
        f'   {100 * row.cut:.1f} % are longer than '
        f'{flags.task_feature_lengths[row.feature]} and would be cut')
    command.say(f'  {row.feature:10}{row.least:8}{row.median:8.0f}'
                f'{row.mean:8.1f}{row.most:8.0f}{row.greatest:8}{cut}')


if __name__ == '__main__':
  sys.exit(main())
