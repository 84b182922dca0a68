"""Natural language inference for SPoT, scored on the label words."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import metrics
from prompt_tuning.spot.data import preprocessors

_THREE_WAY = ('entailment', 'neutral', 'contradiction')


def _row(
    title: str, tag: str, tfds: str, premise_key: str, labels: tuple[str, ...]
) -> families.Dataset:
  """A dataset of hypotheses and what they follow from, or do not."""
  return families.Dataset(
      name=f'spot_{title}_{tag}',
      tfds=tfds,
      text=(functools.partial(
          preprocessors.preprocess_text_classification,
          text_a_key='hypothesis', text_b_key=premise_key, task_name=title,
          label_names=labels),),
      title=title,
      labels=labels,
      metrics=(metrics.accuracy,))


DATASETS = (
    *(_row(f'anli_{r}', 'v010', f'anli/{r}:0.1.0', 'context', _THREE_WAY)
      for r in ('r1', 'r2', 'r3')),
    _row('doc_nli', 'v100', 'doc_nli:1.0.0', 'premise',
         ('not_entailment', 'entailment')),
    _row('snli', 'v110', 'snli:1.1.0', 'premise', _THREE_WAY),
)

families.register_plain(*DATASETS)
