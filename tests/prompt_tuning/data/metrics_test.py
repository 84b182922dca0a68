"""Metrics against the libraries that define them, and worked examples."""

import inspect
import json
import random
import subprocess
import sys

import numpy as np
from prompt_tuning.data import metrics
from prompt_tuning.data import qa_metrics
import pytest
from rouge_score import rouge_scorer
from rouge_score import scoring
import sacrebleu
from scipy import stats
from sklearn import metrics as sklearn_metrics


def classes(count, size=200, wrong=0.3):
  rng = np.random.default_rng(count)
  truth, other = rng.integers(0, count, (2, size))
  found = np.where(rng.random(size) < wrong, other, truth)
  return truth.tolist(), found.tolist()


@pytest.mark.parametrize('count', [2, 3, 5])
def test_accuracy(count):
  truth, found = classes(count)
  assert metrics.accuracy(truth, found) == {
      'accuracy': pytest.approx(
          100 * sklearn_metrics.accuracy_score(truth, found))}
  words = [f'word {i}' for i in truth], [f'word {i}' for i in found]
  assert metrics.accuracy(*words) == metrics.accuracy(truth, found)


def test_f1_of_two_classes():
  truth, found = classes(2)
  assert metrics.f1_score_with_invalid(truth, found) == {
      'f1': pytest.approx(100 * sklearn_metrics.f1_score(truth, found))}


def test_f1_counts_what_is_no_class_as_wrong():
  # One hit; a miss of class 1; a false alarm: 2 / (2 + 1 + 1).
  assert metrics.f1_score_with_invalid([1, 1, 0, 0], [1, -1, 7, 0]) == {
      'f1': 50.0}
  assert metrics.f1_score_with_invalid([0, 0], [0, 0]) == {'f1': 0.0}
  given = np.array([5, 1])
  metrics.f1_score_with_invalid(np.array([1, 1]), given)
  assert given.tolist() == [5, 1]


@pytest.mark.parametrize('count', [2, 3, 5])
def test_mean_f1_of_classes(count):
  truth, found = classes(count)
  expected = 100 * sklearn_metrics.f1_score(truth, found, average='macro')
  assert metrics.mean_multiclass_f1(num_classes=count)(truth, found) == {
      f'mean_{count}class_f1': pytest.approx(expected)}


def test_mean_f1_is_over_all_classes():
  # What is no class lowers that of the class missed, and is none itself.
  mean = metrics.mean_multiclass_f1(num_classes=3)
  assert mean([0, 1, 2, 2], [0, 1, 2, -1]) == {
      'mean_3class_f1': pytest.approx(100 * (1 + 1 + 2 / 3) / 3)}
  # A class that is nowhere has none.
  assert mean([0, 1], [0, 1]) == {'mean_3class_f1': pytest.approx(200 / 3)}


@pytest.mark.parametrize('count', [2, 4])
def test_matthews(count):
  truth, found = classes(count)
  found[:3] = [-1, -1, -1]
  assert metrics.matthews_corrcoef(truth, found) == {
      'matthews_corrcoef': pytest.approx(
          100 * sklearn_metrics.matthews_corrcoef(truth, found))}


@pytest.mark.parametrize('name, reference', [
    ('pearson_corrcoef', stats.pearsonr),
    ('spearman_corrcoef', stats.spearmanr)])
def test_correlations(name, reference):
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 26, 100) / 5
  found = truth + rng.normal(size=100)
  assert getattr(metrics, name)(truth.tolist(), found.tolist()) == {
      name: pytest.approx(100 * reference(truth, found).statistic)}


@pytest.mark.parametrize('name', [
    'matthews_corrcoef', 'pearson_corrcoef', 'spearman_corrcoef'])
@pytest.mark.parametrize('sides', [([1, 1], [0, 1]), ([0, 1], [-1, -1]),
                                   ([1, 1], [1, 1])])
def test_correlation_with_what_is_constant_is_zero(name, sides):
  assert getattr(metrics, name)(*sides) == {name: 0.0}


def test_exact_match():
  assert metrics.exact_match([1, 2], [1, 2]) == {'exact_match': 100.0}
  assert metrics.exact_match([1, 2], [1, 3]) == {'exact_match': 0.0}


MULTIRC_TARGETS = [
    {'value': v, 'group': g} for v, g in
    [(1, 'a'), (0, 'a'), (1, 'b'), (0, 'b'), (1, 'c')]]


def test_multirc():
  found = [{'value': v} for v in (1, 0, 0, -1, 1)]
  # Hits 2, one miss, and one that is no answer: 4 / (4 + 1 + 1).
  assert metrics.multirc_f1_over_all_answers(MULTIRC_TARGETS, found) == {
      'f1': pytest.approx(200 / 3)}
  assert qa_metrics.multirc_exact_match(MULTIRC_TARGETS, found) == {
      'exact_match': pytest.approx(200 / 3)}


def test_groups_need_not_be_together_and_weigh_alike():
  targets = [{'g': i, 'v': v} for i, v in
             [((0, 1), 1), ((0, 2), 1), ((0, 1), 1), ((0, 1), 1)]]
  found = [{'v': v} for v in (1, 0, 1, 0)]
  mean = metrics.mean_group_metric(metrics.accuracy, 'g', 'v')
  assert mean(targets, found) == {'accuracy': pytest.approx(100 / 3)}


def test_record_counts_a_query_once():
  targets = [{'value': ['the Bears', 'Lions'], 'group': (0, 1)}] * 2 + [
      {'value': ['Ann'], 'group': (1, 1)}]
  found = [{'value': v} for v in ('Bears!', 'Bears!', 'Eve Ann')]
  # One is right; the other has its word and one more.
  assert qa_metrics.record(targets, found) == {
      'em': 50.0, 'f1': pytest.approx(100 * (1 + 2 / 3) / 2)}
  assert metrics.deduplicate_metric(metrics.squad)(
      targets, found) == qa_metrics.record(targets, found)


def test_the_first_of_a_group_counts():
  targets = [{'value': 1, 'group': 0}, {'value': 1, 'group': 0}]
  found = [{'value': 1}, {'value': 0}]
  first = metrics.deduplicate_metric(metrics.accuracy)
  assert first(targets, found) == {'accuracy': 100.0}
  assert first(targets, found[::-1]) == {'accuracy': 0.0}


@pytest.mark.parametrize('normalize, text, expected', [
    (qa_metrics.normalize_squad, 'The  U.S. "Army", an\tarmy_of a-b!',
     'us army armyof ab'),
    (qa_metrics.normalize_squad, 'theatre and Anna', 'theatre and anna'),
    (qa_metrics.normalize_squad, 'it\u2019s', 'it\u2019s'),
    (qa_metrics.normalize_trivia_qa, 'The  U.S. "Army", an\tarmy_of a-b!',
     'u s army army of b'),
    (qa_metrics.normalize_trivia_qa, 'it\u2019s \u00b4a\u00b4 `b\u2018',
     'it s b'),
])
def test_answers_are_normalized(normalize, text, expected):
  assert normalize(text) == expected


@pytest.mark.parametrize('answers, given, exact, f1', [
    (['Denver Broncos', 'broncos'], 'The Broncos.', 100, 100),
    (['Denver Broncos'], 'Broncos', 0, 200 / 3),
    (['a b b c'], 'b b b d', 0, 400 / 7),  # 'a' is an article.
    (['x'], 'y', 0, 0), (['x'], '', 0, 0),
    (['the'], 'an', 100, 0),  # The published script says so, too.
    (['one two', 'one two three four'], 'one two three', 0, 600 / 7)])
def test_squad(answers, given, exact, f1):
  assert metrics.squad([answers], [given]) == {
      'em': exact, 'f1': pytest.approx(f1)}
  assert metrics.squad([answers, ['z']], [given, 'z']) == {
      'em': (exact + 100) / 2, 'f1': pytest.approx((f1 + 100) / 2)}


def test_trivia_qa():
  assert metrics.trivia_qa([['AC/DC']], ['ac dc']) == {'em': 100, 'f1': 100}
  assert metrics.squad([['AC/DC']], ['ac dc']) == {'em': 0, 'f1': 0}


def test_a_question_without_answers_is_an_error():
  with pytest.raises(ValueError, match='no right answer'):
    metrics.squad([['a'], []], ['a', 'b'])


SUMMARIES = [
    ('the cat sat . it slept . then it ate', 'it ate . the cat sat'),
    ('rain in spain\nfalls on the plain', 'rain falls on the plain in spain'),
    ('one two three', 'four'), ('same . same', 'same . same')]


def test_rouge():
  truth, found = map(list, zip(*SUMMARIES, strict=True))
  scores = metrics.rouge(truth, found)
  keys = ['rouge1', 'rouge2', 'rougeLsum']
  assert list(scores) == keys
  scorer = rouge_scorer.RougeScorer(keys)
  singles = [scorer.score(t.replace(' . ', ' .\n'), f.replace(' . ', ' .\n'))
             for t, f in SUMMARIES]
  for key in keys:
    assert scores[key] == pytest.approx(
        100 * np.mean([s[key].fmeasure for s in singles]))
  assert metrics.rouge(['a b c d'], ['a b e'])['rouge1'] == pytest.approx(
      100 * 2 * 2 / 7)
  assert metrics.rouge(['a b c d'], ['a b e'], score_keys=['rouge2']) == {
      'rouge2': pytest.approx(100 * 2 / 5)}


def test_rouge_is_what_the_bootstrap_estimates():
  words = np.random.default_rng(0).choice(list('abcdefgh'), (2, 100, 12))
  truth, found = ([' '.join(text) for text in side] for side in words)
  scorer = rouge_scorer.RougeScorer(['rouge2'])
  state = np.random.get_state()
  np.random.seed(0)
  aggregator = scoring.BootstrapAggregator()
  for pair in zip(truth, found, strict=True):
    aggregator.add_scores(scorer.score(*pair))
  median = 100 * aggregator.aggregate()['rouge2'].mid.fmeasure
  np.random.set_state(state)
  assert metrics.rouge(truth, found)['rouge2'] == pytest.approx(median, abs=0.1)


def test_sentences_are_compared_one_by_one():
  # In another order the longest common subsequence is shorter, that of the
  # sentences is not.
  truth, found = 'a b c . d e f', 'd e f . a b c'
  scores = metrics.rouge([truth], [found], score_keys=['rougeL', 'rougeLsum'])
  assert scores['rougeLsum'] == pytest.approx(100)
  assert scores['rougeLsum'] > metrics.rouge(
      ['a b c d e f'], ['d e f a b c'])['rougeLsum']


TRANSLATIONS = ['The cat sat on the mat today.', 'He said: "no, thanks"!']
REFERENCES = ['The cat sat on a mat today.', 'He said "no, thank you"!']


def test_bleu():
  expected = sacrebleu.corpus_bleu(
      TRANSLATIONS, [REFERENCES], tokenize='intl').score
  assert 0 < expected < 100
  assert metrics.bleu(REFERENCES, TRANSLATIONS) == {
      'bleu': pytest.approx(expected)}
  lists = [[reference] for reference in REFERENCES]
  assert metrics.bleu(lists, TRANSLATIONS) == {
      'bleu': pytest.approx(expected)}
  assert metrics.bleu(TRANSLATIONS, TRANSLATIONS) == {
      'bleu': pytest.approx(100)}


def test_bleu_by_hand():
  # Words 3/4, pairs 2/3, threes 1/2, fours smoothed to 1/2: all as long.
  found = metrics.bleu(['a b c d'], ['a b c e'])['bleu']
  assert found == pytest.approx(
      100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)


def test_bleu_with_several_references():
  several = [[REFERENCES[0], TRANSLATIONS[0]], [TRANSLATIONS[1]]]
  assert metrics.bleu(several, TRANSLATIONS)['bleu'] == pytest.approx(100)


def test_bleu_takes_words_apart_as_is_usual_internationally():
  # Quotation marks that are not ASCII are words of their own.
  pair = ['\u201ea b c d e\u201c'], ['\u201e a b c d e \u201c']
  assert metrics.bleu(*pair)['bleu'] == pytest.approx(100)
  assert metrics.bleu(*pair, tokenizer='13a')['bleu'] < 60


METRICS = {
    'accuracy': metrics.accuracy, 'exact_match': metrics.exact_match,
    'f1': metrics.f1_score_with_invalid,
    'mean f1': metrics.mean_multiclass_f1(2),
    'matthews': metrics.matthews_corrcoef,
    'pearson': metrics.pearson_corrcoef,
    'spearman': metrics.spearman_corrcoef, 'squad': metrics.squad,
    'trivia_qa': metrics.trivia_qa, 'rouge': metrics.rouge,
    'bleu': metrics.bleu, 'record': qa_metrics.record,
    'multirc f1': metrics.multirc_f1_over_all_answers,
    'multirc em': qa_metrics.multirc_exact_match,
    'deduplicated': metrics.deduplicate_metric(metrics.accuracy)}


@pytest.mark.parametrize('name', METRICS)
def test_nothing_to_compare_is_an_error(name):
  with pytest.raises(ValueError, match='0 targets and 0 predictions'):
    METRICS[name]([], [])


@pytest.mark.parametrize('name', METRICS)
def test_seqio_sees_that_text_is_wanted(name):
  needed = [p.name for p in inspect.signature(METRICS[name]).parameters.values()
            if p.default is inspect.Parameter.empty]
  assert needed == ['targets', 'predictions']


def test_results_are_plain_numbers():
  for figures in (metrics.accuracy([1], [1]), metrics.rouge(['a'], ['a']),
                  metrics.bleu(['a b c d'], ['a b c d']),
                  metrics.f1_score_with_invalid([1, 0], [1, 1]),
                  metrics.matthews_corrcoef([1, 0], [1, 0]),
                  metrics.pearson_corrcoef([1, 0], [1, 0])):
    assert {type(v) for v in figures.values()} == {float}
    json.dumps(figures)


def test_libraries_are_imported_when_used():
  program = (
      'import sys\n'
      "names = ('sklearn', 'scipy', 'sacrebleu', 'rouge_score', 'nltk')\n"
      'for name in names:\n'
      '  sys.modules[name] = None\n'
      'import prompt_tuning.data.label_metrics\n'
      'import prompt_tuning.data.qa_metrics\n'
      'import prompt_tuning.data.text_metrics\n')
  subprocess.run([sys.executable, '-c', program], check=True)


def prediction(text, target='yes', **more):
  return {'prediction': text, 'prediction_pretokenized': text,
          'inputs_pretokenized': f'is {text}?'.encode(),
          'targets_pretokenized': target.encode(), **more}


def test_metric_with_examples():
  found = [prediction('yes'), prediction('no') | {'other': 'yes'}]
  assert metrics.metric_with_examples(
      metrics.accuracy, ['yes', 'yes'], found) == {'accuracy': 50.0}
  assert metrics.metric_with_examples(
      metrics.accuracy, ['yes'], found[1:], prediction_field='other'
  ) == {'accuracy': 100.0}


def test_samples_are_drawn_by_a_seed_without_touching_the_global_one():
  state = random.getstate()
  for seed in (0, 1, 17):
    first = metrics.safe_sample(5, range(100), seed=seed)
    assert first == metrics.safe_sample(5, range(100), seed=seed)
    assert len(set(first)) == 5
  assert metrics.safe_sample(5, range(100), seed=0) != metrics.safe_sample(
      5, range(100), seed=1)
  anew = {tuple(metrics.safe_sample(5, range(100))) for _ in range(9)}
  assert len(anew) > 1
  metrics.text_examples(['yes'] * 9, [prediction('no')] * 9, 'rte')
  assert random.getstate() == state


@pytest.mark.parametrize('count', [-1, 3, 4])
def test_all_are_taken_where_there_are_no_more(count):
  assert sorted(metrics.safe_sample(count, 'abc', seed=0)) == [0, 1, 2]


def test_text_examples():
  found = [prediction(word) for word in ('yes', 'no', 'maybe')]
  texts = metrics.text_examples(['yes'] * 3, found, 'rte', num_examples=-1)
  assert {name: text.textdata for name, text in texts.items()} == {
      'rte samples': (
          'example: is yes?\n\ntarget: yes\n\nprediction: yes\n\n'
          'example: is no?\n\ntarget: yes\n\nprediction: no\n\n'
          'example: is maybe?\n\ntarget: yes\n\nprediction: maybe'),
      'rte negative samples': (
          'example: is no?\n\ntarget: yes\n\nprediction: no\n\n'
          'example: is maybe?\n\ntarget: yes\n\nprediction: maybe')}


def test_text_examples_are_the_same_every_time():
  found = [prediction(str(i)) for i in range(50)]
  def once(**options):
    return metrics.text_examples(['yes'] * 50, found, 'rte', 3, **options)
  assert once() == once() == once(seed=0) != once(seed=1)
  assert once()['rte samples'].textdata.count('example:') == 3
  assert list(once(find_negative=False)) == ['rte samples']


@pytest.mark.parametrize('target, given, wrong', [
    (1, 1, False), (1, -1, True), (3.8, 3.8, False),
    (['Bears', 'the Lions'], 'lions', False), (['Bears'], 'Lions', True),
    ([], 'Lions', True),
    ({'value': 1, 'group': 3}, {'value': 1}, False),
    ({'value': ['Ann'], 'group': (1, 2)}, {'value': 'ann'}, False),
    ({'value': ['Ann'], 'group': (1, 2)}, {'value': 'Eve'}, True)])
def test_any_right_answer_is_right(target, given, wrong):
  found = [prediction('x') | {'prediction': given}]
  texts = metrics.text_examples([target], found, 't')
  assert bool(texts['t negative samples'].textdata) == wrong


def test_format_qa():
  found = [
      {'context': b'Here .', 'question': b'Who ?', 'prediction_pretokenized':
       'me', 'answers': np.array([b'I', b'Ann', b'I'], object)}]
  short = 'question: Who ?\nanswers: Ann; I\nprediction: me'
  assert metrics.format_qa([0], found) == f'context: Here .\n{short}'
  assert metrics.format_qa([0, 0], found, context_field=None) == (
      f'{short}\n\n{short}')


def test_label_set_stats():
  found = [prediction('yes', 'yes'), prediction('yes', 'no'),
           prediction('perhaps', 'no'), prediction('yes', 'yes')]
  texts = metrics.label_set_stats(None, found, 'rte')
  assert texts['rte label stats'].textdata.split('\n\n') == [
      'target label set cardinality: 2', 'prediction label set cardinality: 2',
      'target \u2229 prediction cardinality: 1',
      'target - prediction cardinality: 1',
      'prediction - target cardinality: 1']
  def shares(**options):
    listing = metrics.label_set_stats(
        None, found, 'rte', **options)['rte label distributions'].textdata
    return json.loads(listing.removeprefix('```\n').removesuffix('\n```'))
  assert shares() == {
      'target label distribution': {'yes': 0.5, 'no': 0.5},
      'prediction label distribution': {'yes': 0.75, 'perhaps': 0.25}}
  assert shares(normalize=False)['prediction label distribution'] == {
      'yes': 3, 'perhaps': 1}
  shown = metrics.label_set_stats(None, found, 'rte', display_sets=True)
  lines = shown['rte label stats'].textdata.split('\n\n')
  assert len(lines) == 10
  assert lines[1] == "target label set: ['no', 'yes']"
  assert lines[9] == "prediction - target: ['perhaps']"
