"""C4 with answers drawn at random: a task's words without the task."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import noise
from prompt_tuning.data import text_formats
from prompt_tuning.recycling.data import preprocessors

_DATASET = families.Dataset(
    name='c4_v220_random_positive_negative_targets',
    tfds='c4/en:2.2.0',
    text=(functools.partial(
        text_formats.rekey, key_map={'inputs': None, 'targets': 'text'}),))
*_cached, _eos = families.to_tokens(_DATASET, families.PLAIN)
families.add_task(_DATASET.name, _DATASET, [
    *_cached,
    noise.prefix_lm,
    functools.partial(
        preprocessors.random_targets, targets=['positive', 'negative']),
    _eos])
