"""SQuAD and DROP for SPoT."""

import dataclasses
import functools

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import preprocessors
from prompt_tuning.spot.data import preprocessors as spot_preprocessors

DATASETS = (
    dataclasses.replace(benchmarks.SQUAD, name='spot_squad_v300'),
    dataclasses.replace(
        benchmarks.question_answering(
            'spot_drop_v200', 'drop:2.0.0', 'drop',
            spot_preprocessors.drop_as_mrqa,
            {'train': 'train', 'validation': 'dev'}),
        text=(spot_preprocessors.drop_as_mrqa,
              functools.partial(preprocessors.mrqa, task_name='drop'))),
)

families.register_plain(*DATASETS)
