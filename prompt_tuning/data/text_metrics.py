"""Metrics of generated text: ROUGE by rouge-score, BLEU by sacrebleu.

Both are imported when a metric is computed, so that tasks are registered
quickly.
"""

from collections.abc import Sequence
import itertools

from prompt_tuning.data import label_metrics


def rouge(
    targets: Sequence[str],
    predictions: Sequence[str],
    score_keys: Sequence[str] = ('rouge1', 'rouge2', 'rougeLsum'),
) -> dict[str, float]:
  """ROUGE of summaries (Lin, ROUGE, 2004).

  The mean over examples, where the T5 package reports the median of a thousand
  draws of this mean: the two agree to a few hundredths, and this one is the
  same every time.

  Args:
    targets: reference summaries. Sentences, which `rougeLsum` compares, end
      at a line break or at ' . '.
    predictions: summaries.
    score_keys: names of rouge-score.

  Returns:
    F-measures in percent.

  Raises:
    ValueError: if there is nothing to compare.
  """
  from rouge_score import rouge_scorer  # noqa: PLC0415  Slow; see above.

  label_metrics.check_pairs(targets, predictions)
  scorer = rouge_scorer.RougeScorer(list(score_keys))
  scores = [
      scorer.score(_by_sentence(target), _by_sentence(prediction))
      for target, prediction in zip(targets, predictions, strict=True)]
  return {key: 100 * sum(s[key].fmeasure for s in scores) / len(scores)
          for key in score_keys}


def bleu(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    tokenizer: str = 'intl',
) -> dict[str, float]:
  """BLEU of the corpus (Papineni et al., BLEU, 2002).

  Args:
    targets: a reference, or several, for every prediction.
    predictions: translations.
    tokenizer: of sacrebleu.

  Returns:
    `bleu` in percent, exponentially smoothed.

  Raises:
    ValueError: if there is nothing to compare.
  """
  import sacrebleu  # noqa: PLC0415  Slow; see above.

  label_metrics.check_pairs(targets, predictions)
  references = [[t] if isinstance(t, str) else t for t in targets]
  # By number of the reference; sacrebleu passes over those that are None.
  streams = list(itertools.zip_longest(*references))
  score = sacrebleu.corpus_bleu(
      list(predictions), streams, smooth_method='exp', tokenize=tokenizer)
  return {'bleu': float(score.score)}


def _by_sentence(summary: str) -> str:
  """A line for every sentence, as texts of T5 have their full stops apart."""
  return summary.replace(' . ', ' .\n')
