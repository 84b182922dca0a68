"""Every published task and mixture, compared row by row with what is known.

`tests/golden/make_published_tasks.py` says where the table comes from.
"""

import functools
import importlib.util
import pathlib
import re

from prompt_tuning.data import rank_classification
from prompt_tuning.data import tasks
from prompt_tuning.extended.perceptron.data import tasks as perceptron
from prompt_tuning.recycling.data import c4
from prompt_tuning.recycling.data import imdb
from prompt_tuning.recycling.data import qqp
from prompt_tuning.recycling.data import record
from prompt_tuning.recycling.data import sst2
from prompt_tuning.spot.data import tasks as spot
import pytest
import seqio

FAMILIES = (tasks, spot, c4, imdb, qqp, record, sst2, perceptron)
GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
HEADER, *LINES = (GOLDEN / 'published_tasks.tsv').read_text().splitlines()
ROWS = [dict(zip(HEADER.split('\t'), line.split('\t'), strict=True))
        for line in LINES]

# Where ours is meant to differ: names, column, what the column is with us (a
# function of the published text), why.
DIFFERENCES = (
    (r'(taskless|task_index)_glue_mnli_and_dev_v\d+_examples',
     'preprocessors_or_members',
     lambda name, text: re.sub(
         r'\bglue_', name.split('glue_')[0] + 'glue_', text),
     'the members were the plain tasks, whose text names the task'),
    (r'(taskless|task_index)_dpr_v001_simple_examples', 'postprocess',
     lambda name, text: 'postprocess_with_examples(identity)',
     'a stray comma made the postprocessor a tuple, which cannot be called'),
    (r'task_index_dpr_v001_simple', 'metrics', lambda name, text: 'accuracy',
     'the metrics were those of the task before it, AX-g, which has none'),
    (r'task_index_dpr_v001_simple_examples', 'metrics',
     lambda name, text: 'metric_with_examples(accuracy), '
                        'text_examples(task_name=dpr)',
     'the same, and the samples were called axg'),
    (r'task_index_dpr_v001_simple(_examples)?', 'preprocessors_or_members',
     lambda name, text: text.replace(
         'CacheDatasetPlaceholder, add_sentinel_to_beginning'
         '(field=inputs,offset=7)',
         'add_sentinel_to_beginning(field=inputs,offset=7), '
         'CacheDatasetPlaceholder'),
     'the sentinel came after the cache; the examples are the same'),
    (r'(\w+_)?glue_(mrpc_from_qqp|qqp_from_mrpc)_v002', 'postprocess',
     lambda name, text: _transfer(name),
     'it made dictionaries, which the plain metrics cannot read'),
    (r'(\w+_)?glue_(mrpc_from_qqp|qqp_from_mrpc)_v002_examples', 'postprocess',
     lambda name, text: f'postprocess_with_examples({_transfer(name)})',
     'the table does not see into it'),
)


def _transfer(name):
  """The stages of a transfer task's postprocessor."""
  source, labels = (
      ('qqp_to_mrpc', 'not_equivalent|equivalent') if 'mrpc_from' in name else
      ('mrpc_to_qqp', 'not_duplicate|duplicate'))
  return f'{source} + string_label_to_class_id(label_classes={labels})'


# Published spellings of functions that have another name here.
NAMES = {rank_classification.postprocess.__name__: 'rank_classification',
         rank_classification.rank_classification_metric.__name__:
             'rank_classification'}


def describe(value):
  """A function with its arguments, as in the table."""
  if isinstance(value, functools.partial):
    given = [describe(v) for v in value.args]
    given += [f'{k}={describe(v)}' for k, v in value.keywords.items()
              if v is not None]
    return f'{describe(value.func)}({",".join(given)})'
  if isinstance(value, dict):
    return '{' + ', '.join(f'{k}: {v}' for k, v in value.items()) + '}'
  if isinstance(value, list | tuple):
    return '|'.join(value)
  if getattr(value, '__qualname__', '') == 'sequential.<locals>.execute':
    stages = value.__closure__[0].cell_contents
    return ' + '.join(map(describe, stages))
  if value is None or isinstance(value, str | int):
    return str(value)
  name = getattr(value, '__name__', type(value).__name__)
  return NAMES.get(name, name)


def row_of(kind, name):
  """The columns of a registered task or mixture."""
  if kind == 'mixture':
    rates = seqio.MixtureRegistry.get(name).rate_per_task_name
    return {'preprocessors_or_members': ', '.join(
        f'{k}={v:g}' for k, v in sorted(rates.items()))}
  task = seqio.TaskRegistry.get(name)
  source = task.source.tfds_dataset
  # pylint: disable=protected-access
  splits = source._split_map or {}
  return {
      'tfds': source.name,
      'splits': ', '.join(f'{k}={v}' for k, v in splits.items()),
      'preprocessors_or_members': ', '.join(
          map(describe, task.preprocessors)),
      'postprocess': describe(task.postprocessor),
      'metrics': ', '.join(
          describe(fn) for fn in task._metric_fn_constructor_args),
  }


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['name'])
def test_is_as_published(row):
  found = row_of(row['kind'], row['name'])
  expected = {column: row[column].replace('postprocess_func=', '')
              for column in found}
  found = {k: v.replace('postprocess_func=', '') for k, v in found.items()}
  for names, column, change, reason in DIFFERENCES:
    if re.fullmatch(names, row['name']):
      changed = change(row['name'], expected[column])
      assert changed != expected[column], f'no longer different: {reason}'
      expected[column] = changed
  assert found == expected


def test_no_difference_is_of_nothing():
  for names, *_ in DIFFERENCES:
    assert any(re.fullmatch(names, row['name']) for row in ROWS), names


def test_the_table_is_what_the_reference_gives(shared_data):
  spec = importlib.util.spec_from_file_location(
      'make_published_tasks', GOLDEN / 'make_published_tasks.py')
  make = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(make)
  reference = shared_data.parent / 'reference' / 'prompt_tuning_registry.tsv'
  assert make.convert(reference.read_text()) == (
      GOLDEN / 'published_tasks.tsv').read_text()
