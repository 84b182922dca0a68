"""SuperGLUE for SPoT; WSC is trained on and evaluated by tasks of its own."""

import dataclasses

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families

TITLES = ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic')
DATASETS = tuple(
    dataclasses.replace(row, name=f'spot_{row.name}')
    for row in (*(benchmarks.SUPER_GLUE[title] for title in TITLES),
                benchmarks.WSC_TRAIN, benchmarks.WSC_EVAL))

families.register_plain(*DATASETS)
families.add_mixture(
    'spot_super_glue_wsc_and_dev_v102_simple',
    ['spot_super_glue_wsc_v102_simple_train',
     'spot_super_glue_wsc_v102_simple_eval'])
