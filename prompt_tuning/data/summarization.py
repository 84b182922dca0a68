"""Summarisation: XSum and CNN/DailyMail."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import postprocessors
from prompt_tuning.data import text_formats
from prompt_tuning.data import text_metrics


def _row(
    name: str, tfds: str, title: str, article_key: str, summary_key: str
) -> families.Dataset:
  """A dataset of articles and summaries; no summary is simply wrong."""
  return families.Dataset(
      name=name,
      tfds=tfds,
      text=(functools.partial(
          text_formats.summarize, article_key=article_key,
          summary_key=summary_key),),
      title=title,
      postprocess=postprocessors.identity,
      metrics=(text_metrics.rouge,),
      samples={'find_negative': False})


DATASETS = (
    _row('xsum_v110', 'xsum:1.1.0', 'xsum', 'document', 'summary'),
    _row('cnn_dailymail_v310', 'cnn_dailymail:3.1.0', 'cnn_dailymail',
         'article', 'highlights'),
)

for _dataset in DATASETS:
  families.register(_dataset, [(families.PLAIN, families.EXAMPLES)])
