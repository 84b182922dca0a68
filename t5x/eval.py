"""Evaluates checkpoints: `python -m t5x.eval --gin_file=... --gin.NAME=VALUE`.

With `runs/prompt_eval.gin` the checkpoint is the frozen model and the prompt
comes from a file; with T5X's `runs/eval.gin` it may be a run's own.
"""

from collections.abc import Callable
from typing import Any

from etils import epath
import jax
import optax
from t5x import checkpoints
from t5x import datasets
from t5x import evaluation
from t5x import explain
from t5x import inference_state
from t5x import initialization
from t5x import inspection
from t5x import loop
from t5x import metric_writers
from t5x import model_info
from t5x import models
from t5x import partitioning
from t5x import program
from t5x import trainer as trainer_lib


def evaluate(
    *,
    model: models.BaseModel,
    dataset_cfg: datasets.DatasetConfig,
    restore_checkpoint_cfg: checkpoints.RestoreCheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    output_dir: str,
    inference_evaluator_cls: Callable[..., Any] = datasets.Evaluator,
    training_evaluator_cls: Callable[..., trainer_lib.Trainer] | None = None,
    train_eval_get_dataset_fn: Callable[..., Any] = (
        datasets.get_training_eval_datasets),
    train_state_initializer_cls: None = None,
    summarize_config_fn: Callable[..., None] | None = None,
    fallback_init_rng: int | None = None,
    base_checkpoint_path: str | None = None,
    use_orbax: bool = True,
    dry_run: bool = False,
) -> dict[str, dict[str, Any]]:
  """Computes SeqIO's metrics of checkpoints, and the training metrics.

  With the restore mode 'all', what has been evaluated is noted in
  `eval.<mixture>.ckpt` and not evaluated again.

  Args:
    model: what is evaluated.
    dataset_cfg: the task or mixture, and its split.
    restore_checkpoint_cfg: the checkpoints: of a model, or of a run.
    partitioner: the mesh.
    output_dir: where configuration, metrics and predictions are written.
    inference_evaluator_cls: a `seqio.Evaluator`.
    training_evaluator_cls: a `trainer.Trainer`, which also computes the
      training metrics, without dropout, over every example; None does not.
    train_eval_get_dataset_fn: makes its data.
    train_state_initializer_cls: must be None: how a state begins is not
      configurable.
    summarize_config_fn: called with the folder, None (T5X's summary writer)
      and the step, to write the configuration.
    fallback_init_rng: seed of parameters that are not in the checkpoint.
    base_checkpoint_path: where the frozen base of a run's own checkpoint is, if
      not where it was.
    use_orbax: accepted for T5X's gin files; any layout is read.
    dry_run: explain the run, and write and compute nothing.

  Returns:
    From task name to metrics, of the last checkpoint that was evaluated; empty
    if there was none left. The metrics are SeqIO's if the task has any, else
    the training metrics.

  Raises:
    ValueError: for a configuration that cannot be evaluated.
  """
  del use_orbax
  initialization.require_no_initializer(
      train_state_initializer_cls, 'evaluate')
  if dry_run:
    metric_writers.Terminal(0, 0).say(
        explain.inference(model, partitioner, dataset_cfg))
    return {}
  directories = inference_state.directories(restore_checkpoint_cfg)
  done = _Done(output_dir, dataset_cfg)
  if restore_checkpoint_cfg.mode == 'all':
    directories = [d for d in directories if d not in done.read()]
  datasets.verify_matching_vocabs(
      dataset_cfg, model.input_vocabulary, model.output_vocabulary)
  restorer = inference_state.Restorer(
      model, partitioner, restore_checkpoint_cfg,
      datasets.some_feature_shapes(
          datasets.feature_converter(model.FEATURE_CONVERTER_CLS)),
      seed=fallback_init_rng, base_checkpoint_path=base_checkpoint_path)
  terminal = metric_writers.Terminal(0, 0)
  folder = metric_writers.RunFolder(
      output_dir, terminal, silent=jax.process_index() != 0)
  evaluations = _evaluations(
      model, partitioner, dataset_cfg, folder,
      inference_evaluator_cls=inference_evaluator_cls,
      training_evaluator_cls=training_evaluator_cls,
      get_dataset_fn=train_eval_get_dataset_fn)
  folder.say(*inspection.cut_features(dataset_cfg))
  results: dict[str, dict[str, Any]] = {}
  for directory in directories:
    state = restorer.state(directory)
    step = int(state.step)
    if directory == directories[0]:
      folder.write_text('model-info.txt', model_info.model_info(
          restorer.infos, restorer.placement, state))
      if summarize_config_fn is not None and jax.process_index() == 0:
        summarize_config_fn(output_dir, None, step)
    if restore_checkpoint_cfg.mode == 'all':
      folder.drop_step('inference_eval/*-metrics.jsonl', step)
      folder.drop_step('training_eval/*/metrics.jsonl', step)
    for evaluate_tasks in evaluations:
      results = evaluate_tasks(loop.Moment(step, state))
    if jax.process_index() == 0:
      done.add(directory)
  if not directories:
    folder.say(f'{done.path}: all checkpoints have been evaluated')
  return results


def _evaluations(
    model: models.BaseModel,
    partitioner: partitioning.PjitPartitioner,
    config: datasets.DatasetConfig,
    folder: metric_writers.RunFolder,
    *,
    inference_evaluator_cls: Callable[..., Any],
    training_evaluator_cls: Callable[..., trainer_lib.Trainer] | None,
    get_dataset_fn: Callable[..., Any],
) -> list[Callable[[loop.Moment], dict[str, dict[str, Any]]]]:
  """What is computed of every checkpoint, SeqIO's metrics last."""
  found: list[Callable[[loop.Moment], dict[str, dict[str, Any]]]] = []
  if training_evaluator_cls is not None:
    trainer = training_evaluator_cls(
        model=model, partitioner=partitioner, first_step=0,
        base_key=jax.random.key(0),  # It never trains.
        learning_rate_fn=optax.constant_schedule(0.0))
    found.append(evaluation.training_evaluation(
        trainer, config, folder, eval_steps=None,
        get_dataset_fn=get_dataset_fn))
  inference = evaluation.inference_evaluation(
      model, partitioner, config, inference_evaluator_cls, folder)
  if inference is not None:
    found.append(inference)
  if not found:
    raise datasets.DatasetError(
        f'{config.mixture_or_task_name!r} has no metrics on the split '
        f'{config.split!r}; there is nothing to evaluate.')
  return found


class _Done:
  """The file `eval.<mixture>.ckpt`: a sorted line per evaluated checkpoint."""

  def __init__(self, output_dir: str, config: datasets.DatasetConfig):
    name = datasets.get_mixture_or_task(config).name
    self.path = epath.Path(output_dir) / f'eval.{name}.ckpt'

  def read(self) -> set[str]:
    """The checkpoints."""
    return (set(self.path.read_text().splitlines())
            if self.path.exists() else set())

  def add(self, directory: str) -> None:
    """Notes another one."""
    temporary = self.path.parent / f'{self.path.name}.tmp'
    temporary.write_text('\n'.join(sorted({*self.read(), directory})))
    temporary.replace(self.path)


if __name__ == '__main__':
  program.main(evaluate)
