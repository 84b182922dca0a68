"""QQP with four pairs of label words."""

import dataclasses
import functools

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import rank_classification
from prompt_tuning.data import text_formats

VERBALIZERS = (
    ('not_duplicate', 'duplicate'),
    ('0', '1'),
    ('unique', 'duplicate'),
    ('not duplicate', 'duplicate'),
)


def _row(labels: tuple[str, str]) -> families.Dataset:
  """QQP with other label words."""
  words = '_'.join(labels).replace(' ', '_spc_')
  return families.nameless(dataclasses.replace(
      benchmarks.GLUE['v200']['qqp'],
      name=f'pr:glue_qqp_v200_{words}_verbalizers',
      text=(functools.partial(
          text_formats.glue, benchmark_name='qqp', label_names=labels),),
      labels=labels,
      postprocess=families.class_id(labels)))


for _dataset in map(_row, VERBALIZERS):
  _name = _dataset.name
  _test = {'validation': 'validation'}
  families.add_uncached(
      f'{_name}_training', _dataset, families.held_out(10000))
  families.add_uncached(f'{_name}_test', _dataset, _test)
  for _suffix, _normed in (('rc', False), ('rc_normed', True)):
    _score = functools.partial(
        rank_classification.rank_classification_metric, num_classes=2,
        normalize_by_target_length=_normed)
    families.add_uncached(
        f'{_name}_{_suffix}', families.ranked(_dataset, _score), _test)
  _evaluated = [f'{_name}_{part}' for part in ('test', 'rc', 'rc_normed')]
  families.add_mixture(f'{_name}_eval', _evaluated)
  families.add_mixture(_name, [f'{_name}_training', *_evaluated])
