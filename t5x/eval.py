"""Evaluates a checkpoint: `python -m t5x.eval --gin_file=... --gin.NAME=VALUE`.

With `runs/prompt_eval.gin` the checkpoint is the frozen model and the prompt
comes from a file.
"""

from collections.abc import Callable
from typing import Any

import jax
from t5x import checkpoints
from t5x import datasets
from t5x import evaluation
from t5x import explain
from t5x import initialization
from t5x import metric_writers
from t5x import models
from t5x import partitioning
from t5x import program


def evaluate(
    *,
    model: models.BaseModel,
    dataset_cfg: datasets.DatasetConfig,
    restore_checkpoint_cfg: checkpoints.RestoreCheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    output_dir: str,
    inference_evaluator_cls: Callable[..., Any] = datasets.Evaluator,
    summarize_config_fn: Callable[..., None] | None = None,
    fallback_init_rng: int | None = None,
    use_orbax: bool = True,
    dry_run: bool = False,
) -> dict[str, dict[str, Any]]:
  """Computes SeqIO's metrics of a checkpoint.

  Args:
    model: what is evaluated.
    dataset_cfg: the task or mixture, and its split.
    restore_checkpoint_cfg: the checkpoint.
    partitioner: the mesh.
    output_dir: where configuration, metrics and predictions are written.
    inference_evaluator_cls: a `seqio.Evaluator`.
    summarize_config_fn: called with the folder, None (T5X's summary writer)
      and the step, to write the configuration.
    fallback_init_rng: seed of parameters that are not in the checkpoint.
    use_orbax: accepted for T5X's gin files; any layout is read.
    dry_run: explain the run, and write and compute nothing.

  Returns:
    From task name to metrics.

  Raises:
    ValueError: for a configuration that cannot be evaluated.
  """
  del use_orbax
  if dry_run:
    metric_writers.Terminal(0, 0).say(
        explain.inference(model, partitioner, dataset_cfg))
    return {}
  converter = datasets.feature_converter(model.FEATURE_CONVERTER)
  datasets.verify_matching_vocabs(
      dataset_cfg, model.input_vocabulary, model.output_vocabulary)
  runner = evaluation.InferenceRunner(
      model, partitioner, dataset_cfg.batch_size)
  state = initialization.inference_state(
      model, partitioner, restore_checkpoint_cfg,
      datasets.some_feature_shapes(converter), fallback_init_rng)
  terminal = metric_writers.Terminal(0, 0)
  folder = metric_writers.RunFolder(
      output_dir, terminal, silent=jax.process_index() != 0)
  if summarize_config_fn is not None and jax.process_index() == 0:
    summarize_config_fn(output_dir, None, int(state.step))
  evaluator = datasets.make_evaluator(
      dataset_cfg, inference_evaluator_cls, converter,
      f'{output_dir}/inference_eval')
  if evaluator is None:
    raise datasets.DatasetError(
        f'{dataset_cfg.mixture_or_task_name!r} has no metrics on the split '
        f'{dataset_cfg.split!r}; there is nothing to evaluate.')
  evaluate_task = evaluation.InferenceEvaluation(evaluator, runner, folder)
  return evaluate_task.report(int(state.step), state)


if __name__ == '__main__':
  program.main(evaluate)
