"""Sentiment for SPoT, and the likeness of captions.

TFDS lacks the customer reviews and Crisscrossed Captions; `made_datasets` says
how they are made.
"""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import metrics
from prompt_tuning.data import postprocessors
from prompt_tuning.spot.data import preprocessors

_POLARITY = ('negative', 'positive')
EMOTIONS = (
    'admiration', 'amusement', 'anger', 'annoyance', 'approval', 'caring',
    'confusion', 'curiosity', 'desire', 'disappointment', 'disapproval',
    'disgust', 'embarrassment', 'excitement', 'fear', 'gratitude', 'grief',
    'joy', 'love', 'nervousness', 'optimism', 'pride', 'realization', 'relief',
    'remorse', 'sadness', 'surprise', 'neutral')
# These have no validation set.
_HELD_OUT = {**families.held_out(10_000), 'test': 'test'}


def _row(
    title: str,
    tag: str,
    tfds: str,
    text_key: str,
    labels: tuple[str, ...],
    *before: families.Preprocessor,
    splits: dict[str, str] | None = None,
) -> families.Dataset:
  """A dataset of one text and a label."""
  return families.Dataset(
      name=f'spot_{title}_{tag}',
      tfds=tfds,
      text=(*before, functools.partial(
          preprocessors.preprocess_text_classification, text_a_key=text_key,
          task_name=title, label_names=labels)),
      title=title,
      labels=labels,
      postprocess=families.class_id(labels),
      metrics=(metrics.accuracy,),
      splits=splits)


DATASETS = (
    _row('yelp_polarity', 'v020', 'yelp_polarity_reviews:0.2.0', 'text',
         _POLARITY, splits=_HELD_OUT),
    # Only the test set has neutral texts.
    _row('sentiment140', 'v100', 'sentiment140:1.0.0', 'text',
         ('negative', 'neutral', 'positive'),
         preprocessors.polarity_as_label, splits=_HELD_OUT),
    _row('customer_reviews', 'v100', 'customer_reviews:1.0.0', 'sentence',
         _POLARITY),
    families.Dataset(
        name='spot_goemotions_v010',
        tfds='goemotions:0.1.0',
        text=(functools.partial(
            preprocessors.emotions, text_key='comment_text',
            label_names=EMOTIONS, task_name='goemotions'),),
        title='goemotions',
        metrics=(metrics.accuracy,)),
    families.Dataset(
        name='spot_crisscrossed_captions_v100',
        tfds='crisscrossed_captions:1.0.0',
        text=(functools.partial(
            preprocessors.similarity, task_name='crisscrossed_captions'),),
        title='crisscrossed_captions',
        postprocess=postprocessors.string_to_float,
        metrics=(metrics.pearson_corrcoef, metrics.spearman_corrcoef)),
)

families.register_plain(*DATASETS)
