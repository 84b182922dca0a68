import numpy as np
from prompt_tuning.data import rank_classification
import pytest
import tensorflow as tf


def _texts(ds):
  return [{k: v.decode() if isinstance(v, bytes) else v.tolist()
           for k, v in row.items()} for row in ds.as_numpy_iterator()]


EXAMPLES = tf.data.Dataset.from_tensor_slices(
    {'inputs': ['one', 'two'], 'targets': ['b', 'a'], 'id': [7, 8]})
LABELS = ('a', 'b', 'c')


def _ranked(mode, **options):
  return rank_classification.rank_classification(
      EXAMPLES, lambda x: tf.repeat(x['inputs'][None], 3),
      lambda x: list(LABELS), lambda x: tf.equal(list(LABELS), x['targets']),
      mode=mode, **options)


def test_every_label_becomes_an_example():
  assert _texts(_ranked('eval')) == [
      {'idx': [i, j], 'inputs': text, 'targets': label,
       'is_correct': label == target}
      for i, (text, target) in enumerate((('one', 'b'), ('two', 'a')))
      for j, label in enumerate(LABELS)]
  assert _texts(rank_classification.rank_labels(EXAMPLES, LABELS)) == _texts(
      _ranked('eval'))


def test_training_sees_the_right_labels_only():
  assert [(row['inputs'], row['targets'])
          for row in _texts(_ranked('train'))] == [('one', 'b'), ('two', 'a')]


def test_few_shot_keeps_labels_together_with_other_fields():
  rows = list(_ranked(
      'fewshot_eval', weight_fn=lambda x: 0.5,
      passthrough_feature_keys=['id']).as_numpy_iterator())
  assert [row['id'].tolist() for row in rows] == [[7] * 3, [8] * 3]
  assert rows[1]['idx'].tolist() == [[1, 0], [1, 1], [1, 2]]
  assert rows[0]['weight'].tolist() == [0.5] * 3


def test_an_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="'guess'"):
    _ranked('guess')


def test_postprocessing_tells_the_metric_what_it_needs():
  example = {'idx': np.array([3, 1]), 'is_correct': np.True_,
             'targets': np.array([5, 6, 1])}
  assert rank_classification.postprocess(-2.0, example, False) == -2.0
  assert rank_classification.postprocess('b', example, True) == (
      (3, 1), True, 1.0, 3)
  assert rank_classification.postprocess(
      'b', example | {'weight': np.float32(2.0)}, True)[2] == 2.0


def _cases(rng, classes, count=150, weighted=False):
  """Targets in a random order, scores, and both by example."""
  truth = rng.integers(classes, size=count)
  # Coarse, so that there are ties.
  scores = np.round(4 * rng.normal(size=(count, classes))) / 4
  weights = rng.integers(1, 4, size=count) if weighted else np.ones(count)
  lengths = rng.integers(1, 5, size=(count, classes))
  flat = [(((i, j), truth[i] == j, float(weights[i]), int(lengths[i, j])),
           scores[i, j]) for i in range(count) for j in range(classes)]
  order = rng.permutation(len(flat))
  targets, values = zip(*(flat[k] for k in order), strict=True)
  return targets, values, truth, scores, weights, lengths


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('classes', [2, 3, 5])
def test_figures_equal_their_definitions(classes, normalize, weighted):
  targets, values, truth, scores, weights, lengths = _cases(
      np.random.default_rng(classes), classes, weighted=weighted)
  scores = scores / lengths if normalize else scores
  found = rank_classification.metric(
      num_classes=classes, normalize_by_target_length=normalize)(
          targets, values)
  best = scores.argmax(axis=1)
  assert found['accuracy'] == pytest.approx(
      100 * (weights * (best == truth)).sum() / weights.sum())

  def f1(label):
    hit = weights[(best == label) & (truth == label)].sum()
    precision = hit / weights[best == label].sum()
    recall = hit / weights[truth == label].sum()
    return 100 * 2 * precision * recall / (precision + recall)

  if classes > 2:
    assert found.keys() == {'accuracy', f'mean_{classes}class_f1'}
    assert found[f'mean_{classes}class_f1'] == pytest.approx(
        np.mean([f1(label) for label in range(classes)]))
    return
  assert found.keys() == {'accuracy', 'f1', 'auc-roc', 'auc-pr'}
  assert found['f1'] == pytest.approx(f1(1))
  margin = scores[:, 1] - scores[:, 0]
  pairs = [(weights[p] * weights[n], margin[p], margin[n])
           for p in np.flatnonzero(truth == 1)
           for n in np.flatnonzero(truth == 0)]
  assert found['auc-roc'] == pytest.approx(100 * sum(
      w * ((a > b) + (a == b) / 2) for w, a, b in pairs) / sum(
          w for w, _, _ in pairs), abs=1e-6)
  area, recall_before = 0.0, 0.0
  for threshold in sorted(set(margin), reverse=True):
    taken = margin >= threshold
    hit = weights[taken & (truth == 1)].sum()
    recall = hit / weights[truth == 1].sum()
    area += (recall - recall_before) * hit / weights[taken].sum()
    recall_before = recall
  assert found['auc-pr'] == pytest.approx(100 * area, abs=1e-6)


def test_several_right_labels_and_varying_numbers_give_the_accuracy_only():
  target = [((0, 0), True, 1.0, 1), ((0, 1), True, 1.0, 1),
            ((1, 0), False, 1.0, 1), ((1, 1), True, 1.0, 1)]
  found = rank_classification.metric(num_classes=2)(target, [0, -1, 0, -1])
  assert found == {'accuracy': 50.0}
  found = rank_classification.metric()(
      [*target, ((1, 2), False, 1.0, 1)], [0, -1, 0, -1, 5])
  assert found == {'accuracy': 50.0}
  with pytest.raises(ValueError, match='has 2 labels'):
    rank_classification.metric(num_classes=3)(target, [0, -1, 0, -1])


def test_areas_are_left_out_where_they_are_not_defined():
  target = [((i, j), j == 1, 1.0, 1) for i in range(3) for j in range(2)]
  found = rank_classification.metric(num_classes=2)(target, [0, 1] * 3)
  assert found == {'accuracy': 100.0, 'f1': 100.0}
