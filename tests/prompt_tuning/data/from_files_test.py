import json

from prompt_tuning.data import from_files
from prompt_tuning.data import metrics
from prompt_tuning.demo import tasks
import pytest
import seqio
from t5x import datasets
from t5x import program
from t5x import train

ROWS = [('is it good', 1), ('is it bad', 0), ('why {not}', 1)]
LABELS = ['no', 'yes']
CONTENTS = {
    'jsonl': ''.join(json.dumps({'q': q, 'label': label, 'id': [1]}) + '\n'
                     for q, label in ROWS),
    'csv': 'label,q\n' + ''.join(f'{label},"{q}"\n' for q, label in ROWS),
    'tsv': 'q\tlabel\n' + ''.join(f'{q}\t{label}\n' for q, label in ROWS),
}


def _file(tmp_path, content, name='train.jsonl'):
  path = tmp_path / name
  path.write_text(content)
  return str(path)


def _task(files, inputs='ask: {q}', targets='{label}', **options):
  return from_files.task(
      files, inputs, targets, tasks.features(), **options)


def _examples(name, split='train'):
  return [(row['inputs_pretokenized'].decode(),
           row['targets_pretokenized'].decode())
          for row in seqio.get_mixture_or_task(name).get_dataset(
              {'inputs': 32, 'targets': 8}, split,
              shuffle=False).as_numpy_iterator()]


@pytest.mark.parametrize('form', CONTENTS)
@pytest.mark.parametrize('labels,words', [
    (LABELS, ('no', 'yes')), ({0: 'bad', '1': 'good'}, ('bad', 'good')),
    (None, ('0', '1')), (['0', '1', '2'], ('0', '1'))])
def test_rows_become_examples(tmp_path, form, labels, words):
  path = _file(tmp_path, CONTENTS[form], f'a.{form}')
  name = _task({'train': path, 'validation': path}, labels=labels)
  expected = [(f'ask: {q}', words[label]) for q, label in ROWS]
  assert _examples(name) == _examples(name, 'validation') == expected
  task = seqio.get_mixture_or_task(name)
  assert task.splits == ('train', 'validation')
  assert task.num_input_examples('train') == 3


def test_templates_join_columns_and_keep_doubled_braces(tmp_path):
  path = _file(tmp_path, '{"a": "x", "b": true, "c": 2.5}\n')
  name = _task({'train': path}, '{{{a}}} {b} {a}', 'is {c}')
  assert _examples(name) == [('{x} true x', 'is 2.5')]


def test_the_name_follows_what_makes_the_task(tmp_path):
  path = _file(tmp_path, CONTENTS['jsonl'])
  name = _task({'train': path}, labels=LABELS, name='mine')
  assert name.startswith('mine_')
  assert name == _task({'train': path}, labels=LABELS, name='mine')
  others = [
      _task({'validation': path}, labels=LABELS, name='mine'),
      _task({'train': path}, name='mine'),
      _task({'train': path}, 'now: {q}', labels=LABELS, name='mine'),
      _task({'train': path}, labels=LABELS, name='mine',
            metrics=[metrics.accuracy]),
      _task({'train': _file(tmp_path, CONTENTS['jsonl'] * 2)}, labels=LABELS,
            name='mine')]
  assert len({name, *others}) == 1 + len(others)


@pytest.mark.parametrize('content,options,message', [
    ('{"q": "x", "label": 2}', {'labels': LABELS},
     r"line 1, column 'label': '2' is no label; .*'no', 'yes'"),
    ('{"q": "x", "label": "1"}\n{"q": "x", "label": "maybe"}',
     {'labels': LABELS}, r"train\.jsonl, line 2, column 'label': 'maybe' is"),
    ('{"q": "x"}', {},
     r"line 1, column 'label': .* found none of that name.*\['q'\]"),
    ('{"q": ["x"], "label": 1}', {}, r"line 1, column 'q': .* found \[\"x\"\]"),
    ('', {}, r'train\.jsonl is empty'),
    ('{"q": }', {}, r'line 1, column 7: no JSON'),
    ('x', {'inputs': 'no column'}, r"inputs is 'no column'"),
    ('x', {'inputs': '{q.__class__}'}, r'no more than their names'),
    ('x', {'inputs': '{q!r}'}, r'no more than their names'),
    ('x', {'inputs': '{q:>9999999999}'}, r'no more than their names'),
    ('x', {'targets': '{label'}, r"targets is '{label': "),
])
def test_what_cannot_be_used_is_named_with_its_place(
    tmp_path, content, options, message):
  files = {'train': _file(tmp_path, content)}
  with pytest.raises(datasets.DatasetError, match=message) as caught:
    _task(files, **options)
  assert '\n' not in str(caught.value)


def test_missing_columns_and_files_are_named(tmp_path):
  table = _file(tmp_path, 'q,answer\nx,y\n', 'a.csv')
  with pytest.raises(datasets.DatasetError, match=r"'label'.*\['q', 'answer'"):
    _task({'train': table})
  with pytest.raises(datasets.DatasetError, match="the file of 'train', /no."):
    _task({'train': '/no.csv'})
  with pytest.raises(datasets.DatasetError, match='files is empty'):
    _task({})


@pytest.mark.slow
def test_a_prompt_is_trained_and_evaluated_on_files(tmp_path):
  rows = tasks.examples(tasks.SOURCES[0], 'validation')[:64]
  paths = {}
  for split, part in (('train', rows[:32]), ('test', rows[32:])):
    path = tmp_path / f'{split}.jsonl'
    path.write_text(''.join(
        json.dumps({'text': text, 'good': label == 'yes'}) + '\n'
        for text, label in part))
    paths[split] = str(path)
  program.run_command(train.train, [
      '--gin_file=models/demo_prompt.gin',
      '--gin_file=models/decoding/greedy.gin',
      '--gin_file=prompts/from_sampled_vocab.gin',
      '--gin_file=runs/demo_finetune.gin', '--gin_file=runs/from_files.gin',
      f'--gin.FILES={paths}', "--gin.INPUTS='{text}'", "--gin.TARGETS='{good}'",
      "--gin.LABELS={'false': 'no', 'true': 'yes'}",
      '--gin.TRAIN_STEPS_RELATIVE=2', '--gin.EVAL_PERIOD=2',
      '--gin.RANDOM_SEED=0', f'--gin.MODEL_DIR={tmp_path}/run'])
  (file,) = (tmp_path / 'run' / 'inference_eval').glob(
      'from_files_*-metrics.jsonl')
  *_, last = (json.loads(line) for line in file.read_text().splitlines())
  (written,) = (tmp_path / 'run' / 'inference_eval').glob(
      f'from_files_*-{last["step"]:06}.jsonl')
  shown = [json.loads(line) for line in written.read_text().splitlines()]
  assert len(shown) == 32
  right = [row['prediction'] == row['target'] for row in shown]
  assert last['accuracy'] == pytest.approx(100 * sum(right) / 32)
  assert {row['target'] for row in shown} == {'no', 'yes'}
