"""`t5x.train` on tasks of every family, with tiny data and the demo's model."""

import dataclasses
import json

import numpy as np
from prompt_tuning.data import tasks
from prompt_tuning.demo import tasks as demo
from prompt_tuning.extended.perceptron.data import tasks as perceptron
from prompt_tuning.recycling.data import c4
from prompt_tuning.recycling.data import imdb
from prompt_tuning.recycling.data import qqp
from prompt_tuning.recycling.data import record
from prompt_tuning.recycling.data import sst2
from prompt_tuning.spot.data import tasks as spot
import pytest
import seqio
from t5x import program
from t5x import train

REGISTERED_BY = (tasks, spot, c4, imdb, qqp, record, sst2, perceptron)
# One mixture or task of each family, with the figures of its evaluation.
# One run does for all: they are one more mixture.
FAMILIES = {
    'task_index_glue_mnli_and_dev_v200_examples': {'accuracy'},
    'taskless_super_glue_wsc_and_dev_v102_simple': {'accuracy'},
    'glue_qqp_from_mrpc_zeroshot_v002_examples': {'accuracy', 'f1'},
    'squad_to_drop_examples': {'em', 'f1'},
    'xsum_v110_examples': {'rouge1', 'rouge2', 'rougeLsum'},
    'c4_v220_bart_text_infilling': set(),
    'spot_glue_mnli_and_dev_v200': {'accuracy'},
    'spot_mrqa_squad_v100': {'em', 'f1'},
    'spot_snli_v110': {'accuracy'},
    'spot_samsum_v100': {'rouge1', 'rouge2', 'rougeLsum'},
    'spot_c4_v220_prefix_lm': set(),
    'spot_gem_common_gen_v110': {'bleu'},
    'spot_race_v200': {'accuracy'},
    'spot_drop_v200': {'em', 'f1'},
    'spot_sentiment_mixture': {'accuracy'},
    'spot_super_glue_wsc_and_dev_v102_simple': {'accuracy'},
    'spot_wmt16_enro_v100': {'bleu'},
    'c4_v220_random_positive_negative_targets': set(),
    'pr:imdb_v100_0_1_verbalizers': {'accuracy', 'normed_accuracy', 'f1'},
    'pr:glue_qqp_v200_0_1_verbalizers': {'accuracy', 'f1', 'auc-roc'},
    'pr:super_glue_record_v102': {'em', 'f1', 'accuracy', 'normed_accuracy'},
    'pr:glue_sst2_v200': {'accuracy', 'f1'},
    'super_glue_copa_v102_generation': {'accuracy', 'f1', 'auc-pr'},
}


def in_the_demos_vocabulary(task):
  """A copy that the demo's model can read."""
  return task.replace(name=f'tiny_{task.name}', output_features={
      key: dataclasses.replace(feature, vocabulary=demo.vocabulary())
      for key, feature in task.output_features.items()})


@pytest.mark.slow
def test_families_train(tiny_tfds, tmp_path, monkeypatch):
  for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
    monkeypatch.setattr(registry, '_REGISTRY', dict(registry._REGISTRY))
  copies = {
      name: [in_the_demos_vocabulary(task) for task in seqio.get_subtasks(
          seqio.get_mixture_or_task(name))] for name in FAMILIES}
  for copy in sum(copies.values(), []):
    seqio.TaskRegistry.add_provider(copy.name, copy)
  seqio.MixtureRegistry.add(
      'tiny_families', [task.name for task in sum(copies.values(), [])],
      default_rate=1.0)
  step, _ = program.run_command(train.train, [
      '--gin_file=models/demo_prompt.gin',
      '--gin_file=runs/demo_finetune.gin',
      '--gin.MIXTURE_OR_TASK_NAME=tiny_families',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 8}",
      '--gin.BATCH_SIZE=64',
      '--gin.TRAIN_STEPS_RELATIVE=2',
      '--gin.EVAL_PERIOD=2',
      '--gin.EVALUATOR_NUM_EXAMPLES=16',
      '--gin.train.run_eval_before_training=False',
      "--gin.infer_eval/utils.DatasetConfig.split='validation'",
      '--gin.infer_eval/utils.DatasetConfig.batch_size=16',
      f'--gin.MODEL_DIR={tmp_path}'])
  prompt = np.load(tmp_path / 'numpy_checkpoints' / f'checkpoint_{step}'
                   / 'encoder.prompt.prompt.prompt')
  assert np.isfinite(prompt).all()
  for name, figures in FAMILIES.items():
    found = set()
    for task in copies[name]:
      path = tmp_path / 'inference_eval' / f'{task.name}-metrics.jsonl'
      if path.exists():
        line, = path.read_text().splitlines()
        found |= set(json.loads(line)) - {'step'}
    assert figures <= found if figures else not found, name
