"""SST-2 whose last training examples validate."""

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families

_NAME = 'pr:glue_sst2_v200'
_DATASET = families.nameless(benchmarks.GLUE['v200']['sst2'])
_TEST = {'validation': 'validation'}

families.add_uncached(f'{_NAME}_train', _DATASET, families.held_out(1000))
families.add_uncached(f'{_NAME}_test', _DATASET, _TEST)
families.add_uncached(f'{_NAME}_test_rc', families.ranked(_DATASET), _TEST)
_EVALUATED = [f'{_NAME}_test', f'{_NAME}_test_rc']
families.add_mixture(f'{_NAME}_eval', _EVALUATED)
families.add_mixture(_NAME, [f'{_NAME}_train', *_EVALUATED])
