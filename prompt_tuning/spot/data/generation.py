"""GEM for SPoT: the English datasets of its first release."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import postprocessors
from prompt_tuning.data import text_metrics
from prompt_tuning.spot.data import preprocessors

_SHORTENED = ('wiki_lingua_english_en', 'xsum')


def _row(
    title: str, source_key: str = 'source', *before: families.Preprocessor
) -> families.Dataset:
  """A dataset of GEM; where a text is shortened ROUGE scores, else BLEU."""
  shortens = title in _SHORTENED
  return families.Dataset(
      name=f'spot_gem_{title}_v110',
      tfds=f'gem/{title}:1.1.0',
      text=(*before, functools.partial(
          preprocessors.data_to_text, task_name=title, source_key=source_key)),
      title=title,
      postprocess=(postprocessors.identity if shortens
                   else postprocessors.references),
      metrics=(text_metrics.rouge if shortens else text_metrics.bleu,),
      # The others are for challenges, and differ from dataset to dataset.
      splits={'train': 'train', 'validation': 'validation'})


DATASETS = (
    _row('common_gen', 'concepts'),
    _row('dart', 'tripleset'),
    _row('e2e_nlg', 'meaning_representation'),
    _row('schema_guided_dialog', 'source', preprocessors.dialog_acts),
    _row('web_nlg_en', 'input'),
    _row('wiki_auto_asset_turk'),
    _row('wiki_lingua_english_en'),
    _row('xsum', 'document'),
)

families.register_plain(*DATASETS)
