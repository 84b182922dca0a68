"""Samples of predictions as texts; and all metrics under T5's names.

What is shown of a prediction was kept by
`postprocessors.postprocess_with_examples`.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import json
import random
from typing import Any

from prompt_tuning.data import constants
from prompt_tuning.data import label_metrics
from prompt_tuning.data import postprocessors
from prompt_tuning.data import qa_metrics
from prompt_tuning.data import text_metrics
import seqio

accuracy = label_metrics.accuracy
exact_match = label_metrics.exact_match
f1_score_with_invalid = label_metrics.f1_score_with_invalid
mean_multiclass_f1 = label_metrics.mean_multiclass_f1
matthews_corrcoef = label_metrics.matthews_corrcoef
pearson_corrcoef = label_metrics.pearson_corrcoef
spearman_corrcoef = label_metrics.spearman_corrcoef
mean_group_metric = label_metrics.mean_group_metric
deduplicate_metric = label_metrics.deduplicate_metric
squad = qa_metrics.squad
trivia_qa = qa_metrics.trivia_qa
multirc_f1_over_all_answers = qa_metrics.multirc_f1_over_all_answers
rouge = text_metrics.rouge
bleu = text_metrics.bleu

# Of `postprocess_with_examples`.
Prediction = Mapping[str, Any]
Texts = dict[str, seqio.metrics.Text]


def metric_with_examples(
    metric_fn: label_metrics.Metric,
    targets: Sequence[Any],
    predictions: Sequence[Prediction],
    prediction_field: str = constants.PREDICTION,
) -> dict[str, Any]:
  """A metric of predictions that come with examples.

  Args:
    metric_fn: the metric, of the predictions themselves.
    targets: of the metric.
    predictions: dictionaries.
    prediction_field: where the prediction is.

  Returns:
    The metric's figures.
  """
  return metric_fn(targets, [p[prediction_field] for p in predictions])


def format_classification(
    indices: Sequence[int],
    examples: Sequence[Prediction],
    input_field: str = constants.INPUT_TEXT,
    target_field: str = constants.TARGET_TEXT,
    prediction_field: str = constants.PREDICTION_TEXT,
) -> str:
  """Some predictions with inputs and targets.

  Args:
    indices: which.
    examples: all predictions.
    input_field: where the inputs are.
    target_field: where the targets are.
    prediction_field: where the predicted text is.

  Returns:
    Paragraphs 'example: ...', 'target: ...', 'prediction: ...'.
  """
  rows = (('example', input_field), ('target', target_field),
          ('prediction', prediction_field))
  return '\n\n'.join(
      f'{label}: {postprocessors.as_text(examples[i][name])}'
      for i in indices for label, name in rows)


def format_qa(
    indices: Sequence[int],
    examples: Sequence[Prediction],
    context_field: str | None = constants.CONTEXT_TEXT,
    question_field: str = constants.QUESTION_TEXT,
    answers_field: str = constants.ANSWERS_TEXT,
    prediction_field: str = constants.PREDICTION_TEXT,
) -> str:
  """Some answers with context, question and right answers.

  Args:
    indices: which.
    examples: all predictions.
    context_field: where the context is; not shown if None.
    question_field: where the question is.
    answers_field: where the right answers are.
    prediction_field: where the predicted text is.

  Returns:
    Lines 'context: ...', 'question: ...', 'answers: a; b', 'prediction: ...',
    an empty line between examples.
  """
  def one(example: Prediction) -> str:
    text = {name: postprocessors.as_text(example[name]) for name in (
        context_field, question_field, prediction_field) if name}
    answers = {postprocessors.as_text(a) for a in example[answers_field]}
    lines = [f'context: {text[context_field]}'] if context_field else []
    return '\n'.join([
        *lines, f'question: {text[question_field]}',
        f'answers: {"; ".join(sorted(answers))}',
        f'prediction: {text[prediction_field]}'])

  return '\n\n'.join(one(examples[i]) for i in indices)


def safe_sample(
    num_examples: int,
    population: Sequence[Any],
    seed: int | None = None,
) -> Sequence[int]:
  """Some indices of a population, without repetition.

  Args:
    num_examples: how many; all if -1 or more than there are.
    population: what is drawn from.
    seed: the same seed draws the same; None draws anew. The global generator
      is not touched.

  Returns:
    The indices, in order if all are taken.
  """
  if num_examples == -1 or num_examples > len(population):
    return range(len(population))
  return random.Random(seed).sample(range(len(population)), k=num_examples)


def text_examples(
    targets: Sequence[Any],
    predictions: Sequence[Prediction],
    task_name: str,
    num_examples: int = 8,
    seed: int | None = 0,
    find_negative: bool = True,
    format_fn: Callable[..., str] = format_classification,
    prediction_field: str = constants.PREDICTION,
) -> Texts:
  """Samples of all predictions and of the wrong ones.

  Args:
    targets: postprocessed targets.
    predictions: of `postprocess_with_examples`.
    task_name: what the samples are named after.
    num_examples: how many of each; -1 for all.
    seed: of the drawing; the same examples are shown at every evaluation
      unless it is None.
    find_negative: whether wrong predictions are shown.
    format_fn: from indices and predictions to a text; bind other fields with
      `functools.partial`.
    prediction_field: where the postprocessed prediction is.

  Returns:
    '{task_name} samples' and '{task_name} negative samples'.
  """
  def sample(population: Sequence[Prediction]) -> seqio.metrics.Text:
    indices = safe_sample(num_examples, population, seed)
    return seqio.metrics.Text(format_fn(indices, population))

  samples = {f'{task_name} samples': sample(predictions)}
  if find_negative:
    samples[f'{task_name} negative samples'] = sample([
        p for t, p in zip(targets, predictions, strict=True)
        if not _agrees(t, p[prediction_field])])
  return samples


def _agrees(target: Any, prediction: Any) -> bool:
  """Whether a prediction is right; one of several right answers will do."""
  if isinstance(target, Mapping) and isinstance(prediction, Mapping):
    target, prediction = target['value'], prediction['value']
  if isinstance(target, list | tuple) and isinstance(prediction, str):
    return bool(target) and squad([target], [prediction])['em'] == 100
  return target == prediction


def label_set_stats(
    targets: Sequence[Any],
    predictions: Sequence[Prediction],
    task_name: str,
    target_field: str = constants.TARGET_TEXT,
    prediction_field: str = constants.PREDICTION_TEXT,
    display_sets: bool = False,
    normalize: bool = True,
) -> Texts:
  """Which label words are targets, which are predicted, and how often.

  A word that is predicted but never a target was made up; a target that is
  never predicted was given up.

  Args:
    targets: not used; the targets' texts are with the predictions.
    predictions: of `postprocess_with_examples`.
    task_name: what the texts are named after.
    target_field: where the target's text is.
    prediction_field: where the predicted text is.
    display_sets: whether the words are shown, not their numbers only.
    normalize: whether shares are shown in place of counts.

  Returns:
    '{task_name} label stats' and '{task_name} label distributions'.
  """
  del targets
  wanted, found = (
      collections.Counter(postprocessors.as_text(p[field]) for p in predictions)
      for field in (target_field, prediction_field))
  sets = {
      'target': wanted.keys(), 'prediction': found.keys(),
      'target \u2229 prediction': wanted.keys() & found.keys(),
      'target - prediction': wanted.keys() - found.keys(),
      'prediction - target': found.keys() - wanted.keys()}
  lines = []
  for name, words in sets.items():
    kind = name if ' ' in name else f'{name} label set'
    lines.append(f'{kind} cardinality: {len(words)}')
    if display_sets:
      lines.append(f'{kind}: {sorted(words)}')
  total = len(predictions) if normalize else 1
  shares = {
      f'{name} label distribution': {
          word: number / total if normalize else number
          for word, number in counts.most_common()}
      for name, counts in (('target', wanted), ('prediction', found))}
  listing = json.dumps(shares, indent=2, ensure_ascii=False)
  return {
      f'{task_name} label stats': seqio.metrics.Text('\n\n'.join(lines)),
      f'{task_name} label distributions': seqio.metrics.Text(
          f'```\n{listing}\n```')}
