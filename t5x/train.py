"""Trains a model: `python -m t5x.train --gin_file=... --gin.NAME=VALUE`.

`train` is a table of contents: data, state, what is done between steps, loop.
"""

from collections.abc import Callable
import contextlib
import dataclasses
from typing import Any

import jax
from t5x import checkpoints
from t5x import datasets
from t5x import evaluation
from t5x import initialization
from t5x import keyword_options
from t5x import loop
from t5x import metric_writers
from t5x import model_info
from t5x import models
from t5x import partitioning
from t5x import processes
from t5x import program
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

TrainState = train_state_lib.TrainState


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """Further arguments of `train`, with T5X's names.

  Attributes:
    stats_period: steps per reported row; None takes the shorter of the
      evaluation and save periods.
    run_eval_before_training: evaluate before the first step.
    use_hardware_rng: random numbers by the hardware's generator; faster on TPU,
      but they depend on the sharding.
    use_orbax: accepted for T5X's command lines; saves are always Orbax's.
    dry_run: explain the run, and write and train nothing.
  """

  stats_period: int | None = None
  run_eval_before_training: bool = False
  use_hardware_rng: bool = False
  use_orbax: bool = True
  dry_run: bool = False


@keyword_options.fields_of(TrainOptions)
def train(
    *,
    model: models.BaseModel,
    train_dataset_cfg: datasets.DatasetConfig,
    train_eval_dataset_cfg: datasets.DatasetConfig | None,
    infer_eval_dataset_cfg: datasets.DatasetConfig | None,
    checkpoint_cfg: checkpoints.CheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    trainer_cls: Callable[..., trainer_lib.Trainer],
    model_dir: str,
    total_steps: int | None,
    eval_steps: int = 20,
    eval_period: int = 1000,
    relative_steps: int | None = None,
    random_seed: int | None = None,
    summarize_config_fn: Callable[..., None] | None = None,
    inference_evaluator_cls: Callable[..., Any] = datasets.Evaluator,
    **options: Any,
) -> tuple[int, TrainState | None]:
  """Trains until an absolute step.

  Args:
    model: what is trained, and on what loss.
    train_dataset_cfg: training data.
    train_eval_dataset_cfg: data for the loss without dropout; None for none.
    infer_eval_dataset_cfg: data for SeqIO's metrics; None for none.
    checkpoint_cfg: where the run starts from and when it is saved.
    partitioner: the mesh.
    trainer_cls: called with model, partitioner, first_step and base_key.
    model_dir: the run's folder.
    total_steps: absolute step to stop at, pretraining included; None if
      `relative_steps` says it.
    eval_steps: batches per evaluation with the training loss.
    eval_period: steps between evaluations; 0 evaluates only at the end.
    relative_steps: if set, stop so many steps after the run's first step.
    random_seed: of initialisation, dropout and data order; None draws one.
    summarize_config_fn: called with the folder, None (T5X's summary writer)
      and the step, to write the configuration.
    inference_evaluator_cls: a `seqio.Evaluator`.
    **options: fields of `TrainOptions`.

  Returns:
    The step that was reached and the state there; no state in a dry run.

  Raises:
    ValueError: for a configuration that cannot be trained; nothing has been
      written then.
    FloatingPointError: when the loss stops being finite.
    SystemExit: when SIGTERM has stopped it, after saving; the code is 143.
  """
  extra = TrainOptions(**options)
  restore, save = checkpoint_cfg.restore, checkpoint_cfg.save
  converter = datasets.feature_converter(
      model.FEATURE_CONVERTER_CLS, train_dataset_cfg.pack)
  shapes = datasets.model_feature_shapes(train_dataset_cfg, converter)

  # The state: the run's last save, else the initial checkpoint, else scratch.
  origin = initialization.find_origin(model_dir, restore, random_seed)
  total_steps = origin.last_step(total_steps, relative_steps)
  batch_size = partitioner.get_data_layout(
      train_dataset_cfg.batch_size).batch_size
  initialization.require_same_batches(origin, batch_size)
  init_key, dropout_key = origin.keys(extra.use_hardware_rng)
  trainer = trainer_cls(
      model=model, partitioner=partitioner, first_step=origin.first_step,
      base_key=dropout_key)
  terminal = metric_writers.Terminal(origin.step, total_steps)
  if extra.dry_run:
    infos = train_state_lib.describe(
        lambda key: model.get_initial_variables(key, shapes),
        model.optimizer_def)
    terminal.say(model_info.summary(infos, shapes, origin.step, total_steps))
    return origin.step, None
  # Every process reads all rows, so that they do not depend on processes.
  dataset = datasets.get_dataset(
      train_dataset_cfg, 0, 1, converter, seed=origin.seed)
  datasets.verify_matching_vocabs(
      train_dataset_cfg, model.input_vocabulary, model.output_vocabulary)
  for config in (train_eval_dataset_cfg, infer_eval_dataset_cfg):
    evaluation.require_usable(config, partitioner)
  start = initialization.start(
      origin, trainer=trainer, input_shapes=shapes, restore=restore,
      init_key=init_key)

  # Between steps: evaluate, save, report.
  begins = origin.last_save is None
  folder = metric_writers.RunFolder(
      model_dir, terminal, silent=jax.process_index() != 0,
      resume_step=origin.step - int(begins))
  _write_summaries(folder, start, trainer, summarize_config_fn)
  reporter = loop.Reporter(
      folder.writers('train', terminal),
      period=extra.stats_period or _shorter(eval_period, save),
      first_step=origin.first_step, initial=start.initial,
      window=start.record.window, model_dir=model_dir)
  hooks = [
      loop.Hook(evaluate, eval_period, origin.first_step,
                on_entry=extra.run_eval_before_training and begins)
      for evaluate in _evaluations(
          trainer, train_eval_dataset_cfg, infer_eval_dataset_cfg, folder,
          seed=origin.seed, eval_steps=eval_steps,
          evaluator_cls=inference_evaluator_cls)
  ]
  if save is not None and (save.period or save.checkpoint_steps):
    record = dataclasses.replace(start.record, batch_size=batch_size)
    hooks.append(_save_hook(save, record, origin.step, reporter, model_dir))

  batches = datasets.prefetch(
      datasets.numpy_batches(dataset, skip=start.record.batches),
      partitioner.global_batch)
  with loop.Stop().listening() as stop, contextlib.closing(folder):
    step, state = loop.run(
        start.state, trainer, batches, total_steps=total_steps, hooks=hooks,
        reporter=reporter, stop=stop)
  if step < total_steps:
    raise processes.Stopped
  return step, state


def _shorter(
    eval_period: int, save: checkpoints.SaveCheckpointConfig | None) -> int:
  """Steps per reported row: the shorter of the periods that are set."""
  periods = (eval_period, save.period if save else None)
  return min((p for p in periods if p), default=100)


def _write_summaries(
    folder: metric_writers.RunFolder,
    start: initialization.Start,
    trainer: trainer_lib.Trainer,
    summarize_config_fn: Callable[..., None] | None,
) -> None:
  """Writes `config.gin` and `model-info.txt`."""
  placement = train_state_lib.shardings(start.infos, trainer.partitioner)
  folder.write_text('model-info.txt', model_info.model_info(
      start.infos, placement, start.state))
  if summarize_config_fn is not None and jax.process_index() == 0:
    summarize_config_fn(folder.directory, None, int(start.state.step))
  count = model_info.count
  folder.say(
      f'{folder.directory}: {count(start.infos):,} parameters, '
      f'{count(start.infos, trainable=True):,} of them trained, from step '
      f'{int(start.state.step):,}')


def _evaluations(
    trainer: trainer_lib.Trainer,
    train_eval: datasets.DatasetConfig | None,
    infer_eval: datasets.DatasetConfig | None,
    folder: metric_writers.RunFolder,
    *,
    seed: int,
    eval_steps: int,
    evaluator_cls: Callable[..., Any],
) -> list[Callable[[loop.Moment], None]]:
  """The evaluations that are configured and have something to evaluate."""
  model, partitioner = trainer.model, trainer.partitioner
  evaluations: list[Callable[[loop.Moment], None]] = []
  if train_eval is not None:
    converter = datasets.feature_converter(
        model.FEATURE_CONVERTER_CLS, train_eval.pack)
    evaluations.append(evaluation.TrainingEvaluation(
        trainer, datasets.get_training_eval_datasets(
            train_eval, 0, 1, eval_steps, converter, seed=seed), folder))
  if infer_eval is not None:
    evaluator = datasets.make_evaluator(
        infer_eval, evaluator_cls,
        datasets.feature_converter(model.FEATURE_CONVERTER_CLS),
        f'{folder.directory}/inference_eval')
    if evaluator is not None:
      evaluations.append(evaluation.InferenceEvaluation(
          evaluator, evaluation.InferenceRunner(
              model, partitioner, infer_eval.batch_size), folder))
  return evaluations


def _save_hook(
    save: checkpoints.SaveCheckpointConfig,
    record: checkpoints.RunRecord,
    step: int,
    reporter: loop.Reporter,
    model_dir: str,
) -> loop.Hook:
  """Saves the run with all that a resumed one must know."""
  checkpointer = checkpoints.make_checkpointer(save, model_dir)
  first_step = record.first_step

  def run(moment: loop.Moment) -> None:
    checkpointer.save(moment.state, dataclasses.replace(
        record, batches=moment.step - first_step,
        window=reporter.window()))

  return loop.Hook(
      run, save.period or 0, first_step,
      on_entry=step == first_step, on_stop=True,
      also_at=save.checkpoint_steps or ())


if __name__ == '__main__':
  program.main(train)
