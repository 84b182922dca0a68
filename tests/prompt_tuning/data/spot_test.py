"""SPoT's own tasks: their texts, their sets, and data that TFDS lacks."""

import json

from prompt_tuning.data import descriptions
from prompt_tuning.data import families
from prompt_tuning.data import few_shot
from prompt_tuning.data import tasks as data_tasks
from prompt_tuning.scripts import make_dataset
from prompt_tuning.scripts import show_tasks
from prompt_tuning.spot.data import made_datasets
from prompt_tuning.spot.data import sets
from prompt_tuning.spot.data import tasks
import pytest
import seqio
from t5x import datasets

REGISTERED_BY = (tasks, data_tasks)
ARTICLE = 'article: Ann went to the sea in May. She saw ships there.'
# The first examples of tiny data, as text.
TEXTS = {
    'spot_race_high_v200': [
        (f'race_high {ARTICLE} question: Where did she go? choice1: The sea '
         'choice2: Home choice3: Town choice4: School', 'choice1'),
        (f'race_high {ARTICLE} question: What did she see? choice1: Dogs '
         'choice2: Birds choice3: Ships choice4: Cars', 'choice3')],
    'spot_abductive_nli_v100': [
        ('abductive_nli observation1: It rained. observation2: Ann was dry. '
         'choice1: She had an umbrella. choice2: She walked long.', 'choice1')],
    'spot_hellaswag_v110': [
        ('hellaswag activity_label: Playing ball context: A man lifts a ball. '
         'He choice1: throws it. choice2: eats it. choice3: reads it. choice4: '
         'sings it.', 'choice1')],
    'spot_winogrande_v120': [
        ('winogrande sentence: The cup fell off the table because _ shook. '
         'choice1: the cup choice2: the table', 'choice2')],
    'spot_drop_v200': [
        ('drop question: How many trips ? context: Ann went to the sea in May '
         '. She saw ships there . ', '1')],
    'spot_squad_v300': None,
    'spot_yelp_polarity_v020': [
        ('yelp_polarity text: A wonderful place.', 'positive')],
    'spot_sentiment140_v100': [
        ('sentiment140 text: so sad today', 'negative'),
        ('sentiment140 text: at the office', 'neutral'),
        ('sentiment140 text: what a day!', 'positive')],
    'spot_customer_reviews_v100': [
        ('customer_reviews sentence: the battery lasts.', 'positive')],
    'spot_goemotions_v010': [
        ('goemotions comment_text: Thanks, I love it!', 'gratitude, love'),
        ('goemotions comment_text: It is Monday.', 'neutral')],
    'spot_crisscrossed_captions_v100': [
        ('crisscrossed_captions sentence1: A cat sits. sentence2: A cat is '
         'sitting.', '4.6')],
    'spot_wmt16_enro_v100': [
        ('translate English to Romanian: The old ship leaves the harbour now.',
         'Vaporul vechi iese din port acum.')],
    'spot_gem_common_gen_v110': [
        ('common_gen generate: dog | ball | park',
         'A dog chased the ball across the park.')],
    'spot_gem_schema_guided_dialog_v110': [
        ('schema_guided_dialog generate: INFORM time = 7 pm, 8 pm; GOODBYE | '
         'When does it leave?', 'It leaves at seven or eight. Goodbye!')],
    'spot_gem_wiki_auto_asset_turk_v110': [
        ('wiki_auto_asset_turk generate: The vessel departed from the ancient '
         'harbour at midday.', 'The ship left the old harbour at noon.')],
    'spot_super_glue_copa_v102': None,
}
# The number of datasets of each mixture, by the paper.
COUNTS = {'glue': 8, 'super_glue': 8, 'nli': 7, 'paraphrase': 4, 'sentiment': 5,
          'mrqa': 6, 'rainbow': 6, 'translation': 3, 'summarization': 9,
          'gem': 8}


def texts_of(task, split, count):
  """The first examples of a source, as the preprocessors before tokens."""
  dataset = task.source.get_dataset(split, shuffle=False)
  for step in task.preprocessors:
    if step is seqio.preprocessors.tokenize:
      break
    dataset = step(dataset)
  return [(row['inputs'].decode(), row['targets'].decode())
          for row in dataset.take(count).as_numpy_iterator()]


@pytest.mark.parametrize(
    'name', [name for name, texts in TEXTS.items() if texts])
def test_text(name, tiny_tfds):
  split = 'test' if 'sentiment140' in name else 'validation'
  task = seqio.TaskRegistry.get(name)
  assert texts_of(task, split, len(TEXTS[name])) == TEXTS[name]


@pytest.mark.parametrize('name, text', [
    ('spot_squad_v300', 'question: '), ('spot_super_glue_copa_v102', 'copa ')])
def test_text_of_the_t5_package_is_kept(name, text, tiny_tfds):
  ((inputs, _),) = texts_of(seqio.TaskRegistry.get(name), 'validation', 1)
  assert inputs.startswith(text)


def dataset_of(task):
  """What a task reads: a dataset's parts, which are its tasks, are one."""
  name = seqio.TaskRegistry.get(task).source.tfds_dataset.name
  return name.partition(':')[0].replace('mnli_', 'mnli').removeprefix(
      'super_').rstrip('123').removesuffix('/r')


def test_sets_are_as_large_as_the_paper_says():
  assert (len(sets.SOURCES), len(sets.TARGETS)) == (16, 10)
  for name, tasks_of in sets.MIXTURES.items():
    assert len(set(tasks_of)) == len(tasks_of)
    if name != 'all':
      assert len({dataset_of(task) for task in tasks_of}) == COUNTS[name], name
    mixture = seqio.MixtureRegistry.get(f'spot_{name}_mixture')
    assert {task.name for task in mixture.tasks} == set(tasks_of)
  known = set(seqio.TaskRegistry.names())
  for group in (sets.SOURCES, sets.TARGETS):
    assert set().union(*group.values()) <= known


def test_mixing_is_in_proportion_up_to_a_limit(tiny_tfds):
  mixture = seqio.MixtureRegistry.get('spot_paraphrase_mixture')
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {
      'spot_crisscrossed_captions_v100': 2, 'spot_glue_mrpc_v200': 202,
      'spot_glue_qqp_v200': 10002, 'spot_glue_stsb_v200': 3}
  task = seqio.TaskRegistry.get('spot_glue_qqp_v200')
  assert families.ExamplesProportional(500)(task) == 500
  assert families.ExamplesProportional().limit == 524_288
  evaluated = seqio.TaskRegistry.get('spot_glue_mnli_validation_matched_v200')
  assert families.ExamplesProportional()(evaluated) == 0


@pytest.fixture
def tfds_elsewhere(tiny_tfds, tmp_path):
  """An empty folder in place of the tiny datasets."""
  folder = tmp_path / 'tfds'
  seqio.set_tfds_data_dir_override(str(folder))
  yield folder
  seqio.set_tfds_data_dir_override(str(tiny_tfds))


def test_listing_a_mixture_opens_no_data(tfds_elsewhere):
  found = descriptions.describe(seqio.MixtureRegistry.get('spot_race_v200'))
  assert found.source == (
      '(examples, at most 524,288) spot_race_high_v200 + '
      '(examples, at most 524,288) spot_race_middle_v200')


def test_a_few_examples_of_a_proportional_mixture(tiny_tfds):
  name = few_shot.task('spot_paraphrase_mixture', 2, seed=3)
  small = seqio.MixtureRegistry.get(name)
  assert sum(small.get_rate(task) for task in small.tasks) == 10_209
  for task in small.tasks:
    assert len(list(task.source.get_dataset('train'))) == 2


def test_showing_a_task_without_its_data_says_how_to_get_them(
    tfds_elsewhere, capsys, monkeypatch):
  # A source remembers its folder and its builder.
  name = 'glue_rte_v200_examples'
  monkeypatch.setattr(seqio.LazyTfdsLoader, '_MEMOIZED_BUILDERS', {})
  monkeypatch.setitem(
      seqio.TaskRegistry._REGISTRY, name, seqio.TaskRegistry.get(name).replace(
          source=seqio.TfdsDataSource('glue/rte:2.0.0')))
  assert show_tasks.main([
      f'--task={name}', f'--tfds_data_dir={tfds_elsewhere}']) == 2
  shown = capsys.readouterr()
  assert (f'glue_rte_v200_examples reads glue/rte:2.0.0, which is not in '
          f'{tfds_elsewhere}') in shown.err
  assert not shown.out


def test_data_that_tfds_does_not_know_may_be_made(tfds_elsewhere):
  task = seqio.TaskRegistry.get('spot_customer_reviews_v100').replace(
      source=seqio.TfdsDataSource('no_such_dataset:1.0.0'))
  with pytest.raises(datasets.DatasetError, match='make_dataset for what'):
    descriptions.require_data(task)


REVIEWS = [{'sentence': 'Sharp pictures.', 'label': 'positive'},
           {'sentence': 'It, too, broke.', 'label': 'negative'}]


@pytest.fixture
def reviews(tmp_path, tfds_elsewhere):
  """Files of the customer reviews, and the command that reads them."""
  train, test = tmp_path / 'train.jsonl', tmp_path / 'test.csv'
  train.write_text(''.join(f'{json.dumps(row)}\n' for row in REVIEWS))
  test.write_text('label,sentence\nnegative,"Dim, and slow."\n')
  return [
      '--dataset=customer_reviews', f'--files=train={train},validation={test}',
      f'--tfds_data_dir={tfds_elsewhere}']


def test_a_dataset_is_made_and_found_by_its_task(
    reviews, tfds_elsewhere, capsys):
  assert make_dataset.main(reviews) == 0
  folder = tfds_elsewhere / 'customer_reviews' / '1.0.0'
  assert str(folder) in capsys.readouterr().out
  source = seqio.TfdsDataSource('customer_reviews:1.0.0')
  rows = {split: [row['sentence'].decode() for row in source.get_dataset(
      split, shuffle=False).as_numpy_iterator()]
          for split in ('train', 'validation')}
  assert rows == {'train': ['Sharp pictures.', 'It, too, broke.'],
                  'validation': ['Dim, and slow.']}
  before = sorted(p.name for p in folder.iterdir())
  assert make_dataset.main(reviews) != 0
  assert 'is there already' in capsys.readouterr().err
  assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize('name, row, message', [
    ('customer_reviews', {'sentence': 'x', 'label': 'good'},
     r"line 1: 'label' is 'good'; expected one of \['negative', 'positive'\]"),
    ('customer_reviews', {'label': 'positive'}, r"line 1: .*'sentence'"),
    ('crisscrossed_captions',
     {'sentence1': 'a', 'sentence2': 'b', 'label': 'nan'},
     r"line 1: 'label' is 'nan'; expected a number"),
    ('crisscrossed_captions', {'sentence1': 'a', 'sentence2': 'b'},
     r"line 1: 'label' is None; expected a number"),
    ('social_i_qa', {
        'context': 'c', 'question': 'q', 'answer1': 'a', 'answer2': 'b',
        'answer3': 'c', 'label': 0}, r'line 1: .*expected one of'),
])
def test_a_bad_row_is_named_and_nothing_is_written(
    name, row, message, tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(json.dumps(row))
  with pytest.raises(datasets.DatasetError, match=message):
    made_datasets.make(name, {'train': str(path)}, str(tmp_path / 'tfds'))
  assert not (tmp_path / 'tfds').exists()


def test_numbers_are_read_from_text_and_json(tmp_path):
  row = {'sentence1': 'a', 'sentence2': 'b'}
  (tmp_path / 'a.jsonl').write_text(json.dumps(row | {'label': 2.5}))
  (tmp_path / 'b.tsv').write_text('sentence1\tlabel\tsentence2\na\t2.5\tb\n')
  folder = made_datasets.make(
      'crisscrossed_captions',
      {'train': str(tmp_path / 'a.jsonl'), 'test': str(tmp_path / 'b.tsv')},
      str(tmp_path / 'tfds'))
  assert folder == str(tmp_path / 'tfds' / 'crisscrossed_captions' / '1.0.0')


def test_files_must_be_named_by_split(reviews, capsys):
  with pytest.raises(SystemExit):
    make_dataset.main(['--dataset=social_i_qa', '--files=a.jsonl',
                       '--tfds_data_dir=/nowhere'])
  assert 'train=a.jsonl,validation=b.tsv' in capsys.readouterr().err


def test_help_names_the_columns(capsys):
  with pytest.raises(SystemExit):
    make_dataset.main(['--help'])
  shown = ' '.join(capsys.readouterr().out.split())
  for name, columns in made_datasets.FEATURES.items():
    assert f'{name}: {", ".join(columns)}' in shown
