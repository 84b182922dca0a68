"""C4 with answers drawn at random: a task's words without the task."""

import functools

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import noise
from prompt_tuning.recycling.data import preprocessors

*_cached, _eos = families.to_tokens(benchmarks.C4, families.PLAIN)
families.add_task(
    f'{benchmarks.C4.name}_random_positive_negative_targets', benchmarks.C4,
    [*_cached, noise.prefix_lm,
     functools.partial(
         preprocessors.random_targets, targets=['positive', 'negative']),
     _eos])
