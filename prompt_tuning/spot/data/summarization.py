"""Summarisation for SPoT: 'aeslc summarize: ...'."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import preprocessors
from prompt_tuning.data import text_metrics


def _row(
    title: str, tag: str, version: str, source_key: str, target_key: str
) -> families.Dataset:
  """A dataset of texts and what they are in short."""
  return families.Dataset(
      name=f'spot_{title}_{tag}',
      tfds=f'{title}:{version}',
      text=(functools.partial(
          preprocessors.preprocess_text_generation, source_key=source_key,
          target_key=target_key, task_name=title, prefix='summarize:'),),
      title=title,
      metrics=(text_metrics.rouge,))


DATASETS = (
    _row('aeslc', 'v100', '1.0.0', 'email_body', 'subject_line'),
    _row('billsum', 'v300', '3.0.0', 'text', 'summary'),
    _row('cnn_dailymail', 'v320', '3.2.0', 'article', 'highlights'),
    _row('gigaword', 'v120', '1.2.0', 'document', 'summary'),
    _row('multi_news', 'v100', '1.0.0', 'document', 'summary'),
    _row('newsroom', 'v100', '1.0.0', 'text', 'summary'),
    _row('samsum', 'v100', '1.0.0', 'dialogue', 'summary'),
    _row('xsum', 'v110', '1.1.0', 'document', 'summary'),
)

families.register_plain(*DATASETS)
