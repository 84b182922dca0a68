"""SuperGLUE: the tasks of each dataset, and mixtures of them.

WSC is a generation task of two datasets, one to train on and one to evaluate.
"""

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families

for _dataset in (*benchmarks.SUPER_GLUE.values(), benchmarks.WSC_EVAL):
  families.register(_dataset)
# The package `t5` has the plain one under this name, too; nothing is evaluated
# on it, so that there are no samples.
families.register(
    benchmarks.WSC_TRAIN, [(families.PLAIN, ''), *families.NAMELESS_KINDS])
families.register(benchmarks.DPR, families.NAMELESS_KINDS)

families.register_mixture(
    '{prefix}super_glue_wsc_and_dev_v102_simple{suffix}',
    ['{prefix}super_glue_wsc_v102_simple_train{suffix}',
     '{prefix}super_glue_wsc_v102_simple_eval{suffix}'],
    families.NAMELESS_KINDS)
families.register_mixture(
    '{prefix}super_glue_wsc_and_dev_v102_simple{suffix}',
    ['{prefix}super_glue_wsc_v102_simple_train',
     '{prefix}super_glue_wsc_v102_simple_eval{suffix}'],
    [(families.PLAIN, families.EXAMPLES)])

# In proportion to the number of training examples.
_PROPORTIONAL = {
    'super_glue_boolq_v102_examples': 9427.0,
    'super_glue_cb_v102_examples': 250.0,
    'super_glue_copa_v102_examples': 400.0,
    'super_glue_multirc_v102_examples': 27243.0,
    'super_glue_record_v102_examples': 138854.0,
    'super_glue_rte_v102_examples': 2490.0,
    'super_glue_wic_v102_examples': 5428.0,
    'super_glue_wsc_v102_simple_train': 259.0,
    'super_glue_wsc_v102_simple_eval_examples': 0.0,
}
for _name, _rates in (
    ('super_glue', _PROPORTIONAL),
    ('super_glue_with_dpr',
     _PROPORTIONAL | {'dpr_v001_simple_examples': 1322.0})):
  families.add_mixture(
      f'task_index_{_name}_v102_examples_proportional',
      {f'task_index_{task}': rate for task, rate in _rates.items()})
