import io
import json
import random
import shlex
import subprocess
import sys

import numpy as np
from prompt_tuning.demo import __main__ as demo
from prompt_tuning.demo import files
from prompt_tuning.demo import language
from prompt_tuning.demo import make_vocabulary
from prompt_tuning.demo import pretraining
from prompt_tuning.demo import tasks
from prompt_tuning.spot import report
import pytest
import rich.console
import seqio
from t5x import checkpoints

ALL = (*tasks.SOURCES, *tasks.TARGETS)
TARGET_NOUNS = {
    word for domain in tasks.TARGET_DOMAINS
    for noun in language.DOMAINS[domain] for word in (noun, noun + 's')}


def test_the_world_is_as_large_as_promised():
  assert len(tasks.SOURCES) >= 6
  assert len({task.family for task in tasks.SOURCES}) >= 3
  assert len(tasks.TARGETS) >= 3
  families = {task.name: task.family for task in tasks.SOURCES}
  for target in tasks.TARGETS:
    assert target.train_size == 32
    assert families[target.related] == target.family
    assert families[target.unrelated] != target.family


def test_texts_depend_on_the_seed_alone():
  first, second = random.Random('a'), random.Random('a')
  assert [language.review(first) for _ in range(20)] == [
      language.review(second) for _ in range(20)]


@pytest.mark.parametrize('positive', [True, False])
def test_a_review_shows_one_mood(positive):
  rng = random.Random(0)
  good, bad = set(language.GOOD), set(language.BAD)
  for _ in range(300):
    text = language.review(rng, positive=positive).text
    for sentence in text.split('.'):
      words = sentence.split()
      shown = bool(good & set(words)) != ('not' in words)
      if good & set(words) or bad & set(words):
        assert shown == positive, sentence
      assert not set(words) & set(
          language.DISLIKED if positive else language.LIKED)


@pytest.mark.parametrize('correct', [True, False])
def test_agreement(correct):
  rng = random.Random(0)
  nouns = {n for names in language.DOMAINS.values() for n in names}
  for _ in range(300):
    words = language.agreement(rng, correct).split()
    plural = any(w[:-1] in nouns and w[-1] == 's' for w in words)
    verb_is_plural = bool({'are', 'were'} & set(words))
    assert (plural == verb_is_plural) == correct, words


@pytest.mark.parametrize('follows', [True, False])
def test_inference(follows):
  rng = random.Random(0)
  for _ in range(300):
    premise, hypothesis = language.inference(rng, follows)
    quality = hypothesis.split()[-2]
    wanted = quality if follows else language.OPPOSITE[quality]
    assert wanted in premise.split()


@pytest.mark.parametrize('task', ALL, ids=lambda task: task.name)
def test_splits_are_balanced_and_apart(task):
  splits = {name: tasks.examples(task, name)
            for name in ('train', *tasks.EVALUATION_SIZES)}
  assert len(splits['train']) == task.train_size
  train = {text for text, _ in splits['train']}
  for name, size in tasks.EVALUATION_SIZES.items():
    assert len(splits[name]) == size
    assert not train & {text for text, _ in splits[name]}
  for examples in splits.values():
    counts = [sum(given == label for _, given in examples)
              for label in task.labels]
    assert max(counts) - min(counts) <= len(task.labels)
    assert {label for _, label in examples} <= set(task.labels)


@pytest.mark.parametrize('task', ALL, ids=lambda task: task.name)
def test_every_word_is_one_known_piece(task):
  vocabulary = tasks.vocabulary()
  for text, label in tasks.examples(task, 'train')[:200]:
    ids = vocabulary.encode(text)
    assert vocabulary.unk_id not in ids
    assert len(ids) == len(text.split()) <= 31
    assert len(vocabulary.encode(label)) == 1
    assert vocabulary.decode(vocabulary.encode(label)) == label


def test_seqio_sees_the_tasks():
  (row,) = seqio.get_mixture_or_task('demo_film_sentiment').get_dataset(
      {'inputs': 32, 'targets': 4}, 'train', shuffle=False).take(
          1).as_numpy_iterator()
  text, label = tasks.examples(tasks.SOURCES[0], 'train')[0]
  vocabulary = tasks.vocabulary()
  assert row['inputs'].tolist() == [*vocabulary.encode(text), 1]
  assert row['targets'].tolist() == [*vocabulary.encode(label), 1]


def test_no_target_task_is_in_pretraining():
  assert {'restaurant', 'garden'} == set(tasks.TARGET_DOMAINS)
  rng = random.Random(0)
  for _ in range(3000):
    question, _ = pretraining.instruction(rng)
    assert not TARGET_NOUNS & set(question.split())
    # An instruction begins with its question; no task's text does.
    assert question.split()[:2][1] == '?'
  for task in ALL:
    assert not any('?' in text for text, _ in tasks.examples(task, 'train'))


def test_corruption_can_be_undone():
  dataset = seqio.get_mixture_or_task('demo_span_corruption').get_dataset(
      {'inputs': 64, 'targets': 64}, 'validation', shuffle=False, seed=0)
  texts = [text for _, text in pretraining.texts('validation')]
  vocabulary = tasks.vocabulary()
  first = vocabulary.vocab_size - tasks.EXTRA_IDS
  noise = total = 0
  for row, text in zip(dataset.as_numpy_iterator(), texts, strict=True):
    inputs, targets = (
        row[name][:-1].tolist() for name in ('inputs', 'targets'))
    assert inputs[0] < first <= targets[0]
    spans: dict[int, list[int]] = {}
    for token in targets:
      if token >= first:
        spans[token] = current = []
      else:
        current.append(token)
    restored = [t for token in inputs for t in spans.get(token, [token])]
    whole = vocabulary.encode(text)
    assert restored == whole
    noise += len(whole) - sum(t < first for t in inputs)
    total += len(whole)
  # One span at least, in texts of a dozen tokens, makes it more than 0.15.
  assert 0.2 < noise / total < 0.35


def test_shipped_files_are_what_the_code_makes():
  assert tasks.VOCABULARY_FILE.read_bytes() == make_vocabulary.train()
  arrays = checkpoints.open_checkpoint(files.checkpoint())
  assert arrays['target/token_embedder/embedding'].shape == (1024, 128)
  count = sum(np.prod(a.shape) for n, a in arrays.items() if n[:6] == 'target')
  assert 1e6 < count < 4e6
  folder = tasks.VOCABULARY_FILE.parent
  size = sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())
  assert size < 8e6


RUNS = [
    report.Run(start, seed, {0: 10.0, 50: base + seed, 100: base + 2 * seed})
    for start, base in (('random', 40.0), ('SPoT: <a>', 70.0))
    for seed in range(3)]


def test_cells_are_means_over_seeds():
  table = report.cells(RUNS)
  cell = table['random'][100]
  assert cell.mean == pytest.approx(42.0)
  assert cell.deviation == pytest.approx(2.0)
  assert cell.standard_error == pytest.approx(2.0 / np.sqrt(3))
  assert report.gain_in_standard_errors(
      table['SPoT: <a>'][50], table['random'][50]) == pytest.approx(
          30 / np.sqrt(2 / 3))


def test_runs_of_different_steps_are_refused():
  with pytest.raises(ValueError, match='different steps'):
    report.cells([*RUNS, report.Run('random', 4, {0: 1.0, 60: 2.0})])


def test_the_table_fits_a_terminal():
  starts = ['random', *(f'SPoT: {task.name}' for task in tasks.SOURCES)]
  runs = [report.Run(start, seed, {step: 2.775 * step * seed for step in range(
      0, 17, 2)}) for start in starts for seed in range(3)]
  console = rich.console.Console(file=io.StringIO(), width=80)
  console.print(report.text_table(report.cells(runs), 'A title'))
  text = console.file.getvalue()
  assert '…' not in text and '44.4 ± 44.4' in text
  assert all(start in text for start in starts)


def test_the_page_needs_nothing_outside_itself(tmp_path):
  page = report.write(
      tmp_path, RUNS, title='A <title>', metric='accuracy, %',
      sentences=['One & two.'], commands=['python -m t5x.train --x="<y>"'])
  text = page.read_text()
  assert 'SPoT: &lt;a&gt;' in text and '<title>A &lt;title&gt;' in text
  assert '72.0 ± 2.0' in text
  for outside in ('http://', 'https://', 'src="/', 'url('):
    assert outside not in text
  assert (tmp_path / 'curves.png').read_bytes()[:4] == b'\x89PNG'
  assert len((tmp_path / 'curves.csv').read_text().splitlines()) == 1 + 18


def test_curves_are_read_from_the_evaluations_file(tmp_path):
  file = tmp_path / 'metrics.jsonl'
  file.write_text(''.join(
      json.dumps({'step': 4500 + s, 'accuracy': float(s)}) + '\n'
      for s in (0, 25, 50)))
  assert report.read_curve(file, 'accuracy', 4500) == {0: 0, 25: 25, 50: 50}


def test_printed_commands_are_shell_commands(tmp_path):
  made = demo.command(
      tmp_path / 'a b', 'demo_film_sentiment',
      ['--gin_file=prompts/from_class_labels.gin',
       "--gin.CLASS_LABELS=['x', 'y']"], steps=5, eval_period=5, seed=1)

  words = shlex.split(str(made).replace('\\\n', ' '))
  assert words[:3] == ['python', '-m', 't5x.train']
  assert tuple(words[3:]) == made.arguments


@pytest.mark.slow
def test_the_first_thing_that_is_printed_is_the_demos():
  done = subprocess.run(
      [sys.executable, '-m', 'prompt_tuning.demo', '--help'], text=True,
      capture_output=True, timeout=120, check=False)
  assert '--source_steps' in done.stdout
  assert not done.stderr


def test_what_is_said_follows_the_figures():
  task = tasks.TARGETS[0]

  def said(seeds, spread):
    runs = [
        report.Run(start, seed, {0: 0.0, 4: base + spread * seed, 8: base})
        for start, base in (('random', 40.0), (f'SPoT: {task.related}', 70.0))
        for seed in range(seeds)]
    return demo.sentences(task, runs, 12.3)

  first, last, time = said(3, 1.0)
  assert first == (f'After 4 steps, SPoT: {task.related} is +30.0 points '
                   'against random: 36.7 standard errors.')
  assert last.endswith('the seeds do not differ.')
  assert '12 seconds' in time
  assert said(1, 0.0)[0].endswith('one seed says nothing of chance.')
