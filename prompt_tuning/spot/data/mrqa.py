"""The training sets of MRQA for SPoT; the text begins with their names."""

import dataclasses
import functools

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import preprocessors

DATASETS = tuple(
    dataclasses.replace(
        benchmarks.MRQA[title],
        name=f'spot_{benchmarks.MRQA[title].name}',
        text=(functools.partial(preprocessors.mrqa, task_name=title),))
    for title in benchmarks.IN_DOMAIN)

families.register_plain(*DATASETS)
