"""Trains a model: `python -m t5x.train --gin_file=... --gin.NAME=VALUE`.

`train` is a table of contents: data, state, what is done between steps, loop.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import functools
import gc
import time
from typing import Any

import jax
from t5x import actions as actions_lib
from t5x import checkpoints
from t5x import datasets
from t5x import evaluation
from t5x import explain
from t5x import initialization
from t5x import inspection
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
_TRAIN = actions_lib.ActionMode.TRAIN
run_actions = actions_lib.run_actions  # T5X's configurations may name it here.


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """Further arguments of `train`, with T5X's names.

  Attributes:
    stats_period: steps per reported row; None takes the shortest of the
      evaluation, save and collection periods.
    run_eval_before_training: evaluate before the first step; where TRAIN_STEPS
      is the step that the run starts from, evaluate and do nothing else.
    actions: from 'TRAIN', 'TRAIN_EVAL' or 'INFER_EVAL' to `trainer.BaseAction`s
      that see the metrics and may end the run.
    gc_period: steps between collections of garbage, which happen at no other
      time then; 0 leaves them to Python.
    get_dataset_fn: makes the training data; see `datasets.get_dataset`.
    train_eval_get_dataset_fn: makes the data of the evaluation with the
      training loss; see `datasets.get_training_eval_datasets`.
    verify_matching_vocabs_fn: called with a `DatasetConfig` and the model; None
      checks nothing.
    train_state_initializer_cls: must be None: how a state begins is not
      configurable.
    concurrent_metrics: accepted for T5X's gin files; metrics are always
      complete before training goes on, so actions always see them.
    use_hardware_rng: random numbers by the hardware's generator; faster on TPU,
      but they depend on the sharding.
    use_orbax: accepted for T5X's command lines; saves are always Orbax's.
    dry_run: explain the run, and write and train nothing.
  """

  stats_period: int | None = None
  run_eval_before_training: bool = False
  actions: actions_lib.ActionMap | None = None
  gc_period: int = 0
  get_dataset_fn: Callable[..., Any] = datasets.get_dataset
  train_eval_get_dataset_fn: Callable[..., Any] = (
      datasets.get_training_eval_datasets)
  verify_matching_vocabs_fn: Callable[..., None] | None = (
      datasets.verify_model_vocabs)
  train_state_initializer_cls: None = None
  concurrent_metrics: bool = True
  use_hardware_rng: bool = False
  use_orbax: bool = True
  dry_run: bool = False

  def __post_init__(self):
    initialization.require_no_initializer(
        self.train_state_initializer_cls, 'train')
    actions_lib.require_modes(self.actions)


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
    trainer_cls: called with model, partitioner, first_step, base_key and axes.
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
  shapes = datasets.model_feature_shapes(
      train_dataset_cfg, datasets.feature_converter(
          model.FEATURE_CONVERTER_CLS, train_dataset_cfg.pack))

  # The state: the run's last save, else the initial checkpoint, else scratch.
  origin = initialization.find_origin(model_dir, restore, random_seed)
  total_steps = _last_step(origin, total_steps, relative_steps, extra)
  batch_size = partitioner.get_data_layout(
      train_dataset_cfg.batch_size).batch_size
  initialization.require_same_batches(origin, batch_size)
  init_key, dropout_key = origin.keys(extra.use_hardware_rng)
  init_fn = functools.partial(model.get_initial_variables, input_shapes=shapes)
  infos = train_state_lib.describe(init_fn, model.optimizer_def)
  trainer = make_trainer(
      trainer_cls, model, partitioner, origin, infos=infos, key=dropout_key)
  terminal = metric_writers.Terminal(origin.step, total_steps)
  train_data, train_eval, infer_eval = (
      _with_seed(config, origin.seed) for config in (
          train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg))
  _require_usable(extra, trainer, train_data, (train_eval, infer_eval))
  initialization.require_same_model(origin, model)
  if begins := origin.last_save is None:
    inspection.require_fitting_checkpoint(
        origin.initial_checkpoint, restore, infos)
  if extra.dry_run:
    terminal.say(explain.training(
        trainer, infos, train_data, shapes, (origin.step, total_steps)))
    return origin.step, None
  # Every process reads all rows, so that they do not depend on processes.
  converter_cls = datasets.feature_converter_cls(model.FEATURE_CONVERTER_CLS)
  dataset = extra.get_dataset_fn(train_data, 0, 1, converter_cls)
  notes = _notes(extra, train_data, infos) if begins else []
  batches = datasets.prefetch(
      datasets.numpy_batches(dataset, origin.batches),
      partitioner.global_batch)
  started = time.monotonic()
  start = initialization.start(
      origin, trainer=trainer, infos=infos, init_fn=init_fn, restore=restore,
      init_key=init_key, batch_size=batch_size)
  seconds = time.monotonic() - started

  # Between steps: evaluate, save, report.
  folder = metric_writers.RunFolder(
      model_dir, terminal, silent=jax.process_index() != 0,
      resume_step=origin.step - begins)
  _write_summaries(folder, start, trainer, summarize_config_fn, notes)
  stats_period = extra.stats_period or _shorter(eval_period, save, extra)
  reporter = loop.Reporter(
      folder.writers('train', terminal), period=stats_period,
      first_step=origin.first_step, initial=start.initial,
      window=start.record.window, model_dir=model_dir)
  reporter.add_seconds('timing/init_or_restore_seconds', seconds)
  stop = loop.Stop()
  watch = _Watch(extra.actions, stop, folder)
  hooks = [
      loop.Hook(watch.after(mode, evaluate), eval_period, origin.first_step,
                on_entry=extra.run_eval_before_training and begins,
                timing='timing/evaluate_seconds')
      for mode, evaluate in _evaluations(
          trainer, train_eval, infer_eval, folder, eval_steps=eval_steps,
          make_datasets=extra.train_eval_get_dataset_fn,
          evaluator_cls=inference_evaluator_cls)
  ]
  if watch.has(_TRAIN):
    hooks.insert(0, loop.Hook(
        watch.after(_TRAIN, lambda moment: {'train': reporter.row}),
        stats_period, origin.first_step))
  if save is not None and (save.period or save.checkpoint_steps):
    hooks.append(_save_hook(save, start, reporter, model_dir, train_data))
  if extra.gc_period:
    hooks.append(loop.Hook(_collect, extra.gc_period, origin.first_step))
  with stop.listening(), contextlib.closing(folder), _garbage(extra.gc_period):
    step, state = loop.run(
        start.state, trainer, batches, total_steps=total_steps, hooks=hooks,
        reporter=reporter, stop=stop)
  if step < total_steps and not stop.decided:
    raise processes.Stopped
  return step, state


def make_trainer(
    trainer_cls: Callable[..., trainer_lib.Trainer],
    model: models.BaseModel,
    partitioner: partitioning.PjitPartitioner,
    origin: initialization.Origin,
    *,
    infos: train_state_lib.ParameterInfos,
    key: jax.Array,
) -> trainer_lib.Trainer:
  """The trainer of a run.

  Args:
    trainer_cls: called with model, partitioner, first_step, base_key and axes.
    model: what is trained.
    partitioner: the mesh.
    origin: where the run starts from.
    infos: what is known of every parameter.
    key: random key of all dropout.

  Returns:
    The trainer; nothing is compiled.
  """
  return trainer_cls(
      model=model, partitioner=partitioner, first_step=origin.first_step,
      base_key=key, axes={path: info.axes for path, info in infos.items()})


def _last_step(
    origin: initialization.Origin,
    total_steps: int | None,
    relative_steps: int | None,
    extra: TrainOptions,
) -> int:
  """The absolute step to stop at, which may be where an evaluation is."""
  if extra.run_eval_before_training and relative_steps is None and (
      total_steps == origin.step):
    return origin.step
  return origin.last_step(total_steps, relative_steps)


def _with_seed(config: Any, seed: int) -> Any:
  """A data configuration with the run's seed where it has none."""
  if config is None or config.seed is not None:
    return config
  return dataclasses.replace(config, seed=seed)


def _require_usable(
    extra: TrainOptions,
    trainer: trainer_lib.Trainer,
    train_data: datasets.DatasetConfig,
    evaluated: Iterable[datasets.DatasetConfig | None],
) -> None:
  """Fails on data that the run could not use, now or at an evaluation."""
  if extra.verify_matching_vocabs_fn is not None:
    extra.verify_matching_vocabs_fn(train_data, trainer.model)
  for config in evaluated:
    evaluation.require_usable(config, trainer.partitioner)


def _notes(
    extra: TrainOptions,
    config: datasets.DatasetConfig,
    infos: train_state_lib.ParameterInfos,
) -> list[str]:
  """What the first examples tell; nothing of data that are not SeqIO's."""
  if extra.get_dataset_fn is not datasets.get_dataset:
    return []
  return inspection.check(config, infos, inspection.first_rows(config))


def _collect(unused_moment: loop.Moment) -> None:
  """Collects garbage."""
  gc.collect()


@contextlib.contextmanager
def _garbage(period: int) -> Iterator[None]:
  """Within it, garbage is collected by a hook only, if there is a period."""
  if not period:
    yield
    return
  gc.disable()
  try:
    yield
  finally:
    gc.enable()


class _Watch:
  """Lets actions see metrics, and ends the run if they say so."""

  def __init__(
      self,
      actions: actions_lib.ActionMap | None,
      stop: loop.Stop,
      folder: metric_writers.RunFolder,
  ):
    self._actions = actions_lib.require_modes(actions)
    self._stop = stop
    self._folder = folder

  def has(self, mode: actions_lib.ActionMode) -> bool:
    """Whether there is an action of a mode."""
    return bool(self._actions[mode])

  def after(
      self, mode: actions_lib.ActionMode,
      evaluate: Callable[[loop.Moment], Any],
  ) -> Callable[[loop.Moment], None]:
    """A hook's function that evaluates, then runs a mode's actions."""

    def run(moment: loop.Moment) -> None:
      metrics = evaluate(moment)
      if run_actions(mode, self._actions, moment.state, metrics):
        self._stop.decided = True
        self._folder.say(
            f'step {moment.step:,}: an action after {mode.name} stops the run')

    return run


def _shorter(
    eval_period: int,
    save: checkpoints.SaveCheckpointConfig | None,
    extra: TrainOptions,
) -> int:
  """Steps per reported row: the shortest of the periods that are set."""
  periods = (eval_period, save.period if save else None, extra.gc_period)
  return min((p for p in periods if p), default=100)


def _write_summaries(
    folder: metric_writers.RunFolder,
    start: initialization.Start,
    trainer: trainer_lib.Trainer,
    summarize_config_fn: Callable[..., None] | None,
    notes: Iterable[str],
) -> None:
  """Writes `config.gin` and `model-info.txt`; says what is to be known."""
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
  folder.say(*notes)


def _evaluations(
    trainer: trainer_lib.Trainer,
    train_eval: datasets.DatasetConfig | None,
    infer_eval: datasets.DatasetConfig | None,
    folder: metric_writers.RunFolder,
    *,
    eval_steps: int,
    make_datasets: Callable[..., Any],
    evaluator_cls: Callable[..., Any],
) -> list[tuple[actions_lib.ActionMode, Callable[[loop.Moment], Any]]]:
  """The evaluations that are configured and have something to evaluate."""
  mode = actions_lib.ActionMode
  found: list[tuple[actions_lib.ActionMode, Callable[..., Any]]] = []
  if train_eval is not None:
    found.append((mode.TRAIN_EVAL, evaluation.training_evaluation(
        trainer, train_eval, folder, eval_steps=eval_steps,
        get_dataset_fn=make_datasets)))
  if infer_eval is not None:
    made = evaluation.inference_evaluation(
        trainer.model, trainer.partitioner, infer_eval, evaluator_cls, folder)
    if made is not None:
      found.append((mode.INFER_EVAL, made))
  return found


def _save_hook(
    save: checkpoints.SaveCheckpointConfig,
    start: initialization.Start,
    reporter: loop.Reporter,
    model_dir: str,
    data: datasets.DatasetConfig,
) -> loop.Hook:
  """Saves the run with all that a resumed one must know."""
  checkpointer = checkpoints.make_checkpointer(save, model_dir)
  first_step = start.record.first_step
  task = data.mixture_or_task_name

  def run(moment: loop.Moment) -> None:
    checkpointer.save(moment.state, dataclasses.replace(
        start.record, batches=moment.step - first_step,
        task=task if isinstance(task, str) else task.name,
        window=reporter.window()))

  return loop.Hook(
      run, save.period or 0, first_step,
      on_entry=int(start.state.step) == first_step, on_stop=True,
      also_at=save.checkpoint_steps or (),
      timing='timing/checkpoint_seconds')


if __name__ == '__main__':
  program.main(train)
