"""Translation from English for SPoT: WMT's German, French and Romanian."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import postprocessors
from prompt_tuning.data import text_formats
from prompt_tuning.data import text_metrics


def _row(dataset: str, language: str) -> families.Dataset:
  """A dataset of sentences in English and another language."""
  return families.Dataset(
      name=f'spot_{dataset}_en{language}_v100',
      tfds=f'{dataset}_translate/{language}-en:1.0.0',
      text=(functools.partial(
          text_formats.translate, source_language='en',
          target_language=language),),
      title=dataset,
      postprocess=postprocessors.identity,
      metrics=(text_metrics.bleu,))


DATASETS = (_row('wmt_t2t', 'de'), _row('wmt15', 'fr'), _row('wmt16', 'ro'))

families.register_plain(*DATASETS)
