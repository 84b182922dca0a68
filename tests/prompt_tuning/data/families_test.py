"""What importing a family registers, and what it does not do."""

import importlib
import pathlib
import socket
import sys

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import features
from prompt_tuning.spot.data import sets
import pytest
import seqio
from t5x import gin_utils
import tensorflow as tf
import tensorflow_datasets as tfds

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
PACKAGES = {
    'prompt_tuning.data': [
        'c4', 'glue', 'glue_transfer', 'qa', 'summarization', 'super_glue'],
    'prompt_tuning.spot.data': [
        'c4', 'generation', 'glue', 'mrqa', 'multiple_choice', 'nli', 'qa',
        'sentiment', 'summarization', 'super_glue', 'translation'],
    'prompt_tuning.recycling.data': ['c4', 'imdb', 'qqp', 'record', 'sst2'],
    'prompt_tuning.extended.perceptron.data': ['tasks'],
}
FAMILIES = [f'{package}.{name}'
            for package, names in PACKAGES.items() for name in names]
# What families are made with opens nothing either.
TABLES = ('prompt_tuning.data.features', 'prompt_tuning.data.families',
          'prompt_tuning.data.benchmarks')
COLLECTIONS = ('prompt_tuning.data.tasks', 'prompt_tuning.spot.data.sets',
               'prompt_tuning.spot.data.tasks')
# Tasks and mixtures of SPoT that the reference does not have, by module.
BEYOND = {'c4': (1, 0), 'generation': (8, 0), 'multiple_choice': (8, 1),
          'qa': (2, 0), 'sentiment': (5, 0), 'summarization': (1, 0),
          'super_glue': (9, 1), 'translation': (3, 0)}
PUBLISHED = [
    line.split('\t')[:3] for line in
    (GOLDEN / 'published_tasks.tsv').read_text().splitlines()]
# Plain tasks of the package `t5` that published mixtures refer to.
OF_T5 = {'glue_mrpc_v002', 'glue_qqp_v002', 'super_glue_wsc_v102_simple_train'}


def registered():
  """Kind and name of every task and mixture."""
  return {f'{kind} {name}' for kind, registry in (
      ('task', seqio.TaskRegistry), ('mixture', seqio.MixtureRegistry))
          for name in registry.names()}


@pytest.fixture
def fresh(monkeypatch):
  """`fresh(name)`: imports a family where no family was imported yet."""
  def load(*names):
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
      monkeypatch.setattr(registry, '_REGISTRY', {})
    for name in (*TABLES, *FAMILIES, *COLLECTIONS):
      package, _, module = name.rpartition('.')
      monkeypatch.delitem(sys.modules, name, raising=False)
      parent = importlib.import_module(package)
      monkeypatch.delattr(parent, module, raising=False)
    for name in names:
      importlib.import_module(name)
    return registered()

  return load


def test_golden_listing(fresh):
  names = sorted(fresh(*FAMILIES, *COLLECTIONS))
  path = GOLDEN / 'tasks.txt'
  if not path.exists():
    path.write_text('\n'.join(names) + '\n')
    pytest.fail(f'{path} was missing; it is written, read it and keep it.')
  assert path.read_text().splitlines() == names


def test_counts_are_those_of_the_reference(fresh):
  def count(found, prefix=''):
    names = [n.split() for n in found]
    return tuple(
        sum(kind == wanted and name.startswith(prefix) for kind, name in names)
        for wanted in ('task', 'mixture'))

  found = fresh('prompt_tuning.data.tasks')
  for model in ('mt5_', 'byt5_'):
    # The plain tasks of T5 in the vocabulary of the family are ours.
    assert count(found, model) == (204 + len(OF_T5), 30)
  assert count(found) == (206 + 2 * 204 + 3 * len(OF_T5), 32 + 2 * 30)
  tasks, mixtures = (sum(pair) for pair in zip(*BEYOND.values(), strict=True))
  # The mixtures of sets are SPoT's own, too.
  assert count(fresh('prompt_tuning.spot.data.tasks')) == (
      29 + tasks, 1 + mixtures + len(sets.MIXTURES))
  recycling = [n for n in FAMILIES if 'recycling' in n]
  assert count(fresh(*recycling)) == (29, 16)
  assert count(fresh('prompt_tuning.extended.perceptron.data.tasks')) == (
      66, 22)


@pytest.mark.parametrize('name', FAMILIES)
def test_family_registers_only_itself_and_opens_nothing(
    name, fresh, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError(f'opened at import: {args}')

  for module, function in ((tf.io.gfile, 'GFile'), (tfds, 'load'),
                           (tfds, 'builder'), (socket.socket, 'connect')):
    monkeypatch.setattr(module, function, refuse)
  found = {n for n in fresh(name) if not n.split()[1].startswith(
      ('mt5_', 'byt5_'))}
  of_family = {f'{kind} {task}' for module, kind, task in PUBLISHED
               if module == name}
  members = {f'task {task}' for mixture in seqio.MixtureRegistry.names()
             for task in seqio.MixtureRegistry.get(mixture).rate_per_task_name}
  assert of_family <= found
  package, _, module = name.rpartition('.')
  if 'spot' in package:
    assert len(found - of_family) == sum(BEYOND.get(module, ()))
  else:
    assert found <= of_family | members
  loaded = {n for n in (*FAMILIES, *COLLECTIONS) if n in sys.modules}
  assert loaded == {name}


@pytest.mark.parametrize('name', [*FAMILIES, *COLLECTIONS])
def test_module_may_be_imported_again(name, fresh):
  once = fresh(name)
  importlib.reload(sys.modules[name])
  assert registered() == once


@pytest.mark.parametrize('family, file', [
    ('', 't5_1_1_small'), ('mt5_', 'mt5_small'), ('byt5_', 'byt5_small')])
def test_features_are_in_the_vocabulary_of_the_models(family, file):
  # SeqIO compares paths, and a task of another vocabulary is refused.
  vocabulary = gin_utils.value_of('%VOCABULARY', [f'models/{file}_prompt.gin'])
  for feature in features.MODEL_TO_FEATURES[family].values():
    assert feature.vocabulary == vocabulary
    assert feature.add_eos


def test_task_index_variants_need_an_index():
  row = benchmarks.DPR
  unnumbered = families.Dataset(name='unnumbered', tfds=row.tfds, text=row.text)
  with pytest.raises(ValueError, match="'unnumbered' has no task_index"):
    families.to_tokens(unnumbered, families.TASK_INDEX)


def test_no_two_datasets_of_a_benchmark_share_a_sentinel():
  # Those that do are one task: MNLI and its diagnostics, RTE and its, WSC.
  for rows, shared in (
      (benchmarks.GLUE['v002'], {'mnli', 'mnli_matched', 'mnli_mismatched',
                                 'ax'}),
      (benchmarks.SUPER_GLUE, {'rte', 'axb', 'axg'})):
    indices = [row.task_index for title, row in rows.items()
               if title not in shared]
    indices.append({rows[title].task_index for title in shared}.pop())
    assert len({rows[title].task_index for title in shared}) == 1
    assert sorted(indices) == sorted(set(indices))
