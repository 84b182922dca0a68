"""Metrics of question answering: SQuAD, TriviaQA, ReCoRD, MultiRC.

Exact match and F1 of short answers are those of Rajpurkar et al. (SQuAD:
100,000+ questions for machine comprehension of text, 2016, section 6.1) and
Joshi et al. (TriviaQA, 2017, section 5); an answer counts as the best of the
right answers says. Those of MultiRC are those of Khashabi et al. (Looking
beyond the surface, 2018, section 5).
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import re
import string
from typing import Any

from prompt_tuning.data import label_metrics

# Targets and predictions of `postprocessors.multirc` and `record`.
Groups = Sequence[Mapping[str, Any]]

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_SQUAD_MARKS = str.maketrans('', '', string.punctuation)
# TriviaQA puts a space in place of a mark, and knows more marks.
_TRIVIA_MARKS = str.maketrans(
    dict.fromkeys(string.punctuation + '\u2018\u2019\u00b4`', ' '))


def normalize_squad(answer: str) -> str:
  """Lower case without punctuation and articles, single spaces."""
  return _without_articles(answer.lower().translate(_SQUAD_MARKS))


def normalize_trivia_qa(answer: str) -> str:
  """As for SQuAD, but that punctuation separates words."""
  return _without_articles(answer.lower().translate(_TRIVIA_MARKS))


def _without_articles(text: str) -> str:
  return ' '.join(_ARTICLES.sub(' ', text).split())


def squad(
    targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """SQuAD's exact match and F1.

  Args:
    targets: the right answers to each question.
    predictions: an answer to each.

  Returns:
    `em` and `f1` in percent.
  """
  return _best(targets, predictions, normalize_squad)


def trivia_qa(
    targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """TriviaQA's exact match and F1.

  Args:
    targets: the right answers to each question.
    predictions: an answer to each.

  Returns:
    `em` and `f1` in percent.
  """
  return _best(targets, predictions, normalize_trivia_qa)


def record(targets: Groups, predictions: Groups) -> dict[str, float]:
  """SQuAD's figures, of one example per query: they differ in a target only.

  Args:
    targets: of `postprocessors.record`.
    predictions: of `postprocessors.record`.

  Returns:
    `em` and `f1` in percent.
  """
  return label_metrics.deduplicate_metric(squad)(targets, predictions)


def multirc_f1_over_all_answers(
    targets: Groups, predictions: Groups) -> dict[str, float]:
  """F1a of MultiRC: over all answers, whatever their question.

  Args:
    targets: of `postprocessors.multirc`.
    predictions: of `postprocessors.multirc`.

  Returns:
    `f1` in percent.
  """
  return label_metrics.f1_score_with_invalid(
      [t['value'] for t in targets], [p['value'] for p in predictions])


def multirc_exact_match(
    targets: Groups, predictions: Groups) -> dict[str, float]:
  """Questions of MultiRC of which all answers are judged rightly.

  Args:
    targets: of `postprocessors.multirc`.
    predictions: of `postprocessors.multirc`.

  Returns:
    `exact_match` in percent.
  """
  return label_metrics.mean_group_metric(label_metrics.exact_match)(
      targets, predictions)


def _best(
    targets: Sequence[Sequence[str]],
    predictions: Sequence[str],
    normalize: Callable[[str], str],
) -> dict[str, float]:
  """Means over questions of the best over right answers."""
  label_metrics.check_pairs(targets, predictions)
  if not all(map(len, targets)):
    raise ValueError(
        'A question has no right answer; leave such questions out.')
  exact = f1 = 0.0
  for answers, prediction in zip(targets, predictions, strict=True):
    given = normalize(prediction)
    right = [normalize(answer) for answer in answers]
    exact += given in right
    f1 += max(_word_f1(answer, given) for answer in right)
  return {'em': 100 * exact / len(predictions),
          'f1': 100 * f1 / len(predictions)}


def _word_f1(target: str, prediction: str) -> float:
  """Harmonic mean of precision and recall of the words, 0 with none shared."""
  wanted = collections.Counter(target.split())
  given = collections.Counter(prediction.split())
  shared = (wanted & given).total()
  return 2 * shared / (wanted.total() + given.total()) if shared else 0.0
