"""ReCoRD: trained on each answer, evaluated by what is written or ranked.

Ranking takes an example once, however many answers it has, and scores all
entities of its passage.
"""

import dataclasses
import functools

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import rank_classification
from prompt_tuning.recycling.data import metrics
from prompt_tuning.recycling.data import preprocessors

_NAME = 'pr:super_glue_record_v102'
_TEST = {'validation': 'validation'}
_WRITTEN = families.nameless(benchmarks.SUPER_GLUE['record'])
_ONCE = families.nameless(
    dataclasses.replace(_WRITTEN, text=(preprocessors.record,)))
_RANKED = dataclasses.replace(
    _ONCE,
    text=(*_ONCE.text, preprocessors.rank_entities),
    postprocess=rank_classification.postprocess,
    # The number of entities varies.
    metrics=(
        rank_classification.rank_classification_metric,
        functools.partial(
            metrics.prefix_metric_names,
            metric_fn=functools.partial(
                rank_classification.rank_classification_metric,
                normalize_by_target_length=True),
            metric_prefix='normed')))

families.add_uncached(f'{_NAME}_training', _WRITTEN, families.held_out(10000))
families.add_uncached(f'{_NAME}_test', _WRITTEN, _TEST)
families.add_uncached(f'{_NAME}_rc', _RANKED, _TEST)
_EVALUATED = [f'{_NAME}_test', f'{_NAME}_rc']
families.add_mixture(f'{_NAME}_eval', _EVALUATED)
families.add_mixture(_NAME, [f'{_NAME}_training', *_EVALUATED])
