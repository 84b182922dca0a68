"""Evaluation during and after training, on a mesh."""

from collections.abc import Callable, Iterator, Mapping
import functools
import hashlib
from typing import Any

import jax
from jaxtyping import Array
import numpy as np
from t5x import datasets
from t5x import loop
from t5x import metric_writers
from t5x import metrics as metrics_lib
from t5x import models
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

TrainState = train_state_lib.TrainState


def require_usable(
    config: datasets.DatasetConfig | None,
    partitioner: partitioning.PjitPartitioner,
) -> None:
  """Fails on an evaluation that could not be run later; None is none.

  Raises:
    ValueError: if its task is not registered or its batches cannot be cut.
  """
  if config is not None:
    datasets.get_mixture_or_task(config)
    partitioner.get_data_layout(config.batch_size)


class TrainingEvaluation:
  """A hook: the training metrics on other data, without dropout."""

  def __init__(
      self,
      trainer: trainer_lib.Trainer,
      batches: Mapping[str, Any],
      folder: metric_writers.RunFolder,
  ):
    """Opens a writer per task.

    Args:
      trainer: computes the metrics.
      batches: from task name to a dataset of batches.
      folder: where figures go.
    """
    self._trainer = trainer
    self._batches = batches
    self._say = folder.say
    self._writers = {
        name: folder.writers(f'training_eval/{name}') for name in batches}

  def __call__(self, moment: loop.Moment) -> dict[str, dict[str, float]]:
    """Evaluates every task, writes a row for each and returns them."""
    rows = {}
    for name, dataset in self._batches.items():
      total: metrics_lib.Metrics | None = None
      for batch in datasets.numpy_batches(dataset):
        placed = self._trainer.partitioner.global_batch(batch)
        total = metrics_lib.merge(total, metrics_lib.to_host(
            self._trainer.eval(moment.state, placed)))
      timeless = {k: m for k, m in (total or {}).items()
                  if not isinstance(m, metrics_lib.TimeRate)}
      row = metrics_lib.compute(timeless)
      self._writers[name].write(moment.step, row)
      self._say(f'step {moment.step:,}  {name}: loss {row["loss"]:.4g}  '
                f'accuracy {row["accuracy"]:.4g}')
      rows[name] = row
    return rows


def training_evaluation(
    trainer: trainer_lib.Trainer,
    config: datasets.DatasetConfig,
    folder: metric_writers.RunFolder,
    *,
    eval_steps: int | None,
    get_dataset_fn: Callable[..., Any],
) -> TrainingEvaluation:
  """The training metrics on the data of a configuration.

  Args:
    trainer: computes them.
    config: what to read.
    folder: where figures go.
    eval_steps: see `datasets.get_training_eval_datasets`.
    get_dataset_fn: that function, or one like it.

  Returns:
    The hook.
  """
  # Every process reads all rows, so that they do not depend on processes.
  return TrainingEvaluation(trainer, get_dataset_fn(
      config, 0, 1, eval_steps, datasets.feature_converter_cls(
          trainer.model.FEATURE_CONVERTER_CLS)), folder)


class InferenceRunner:
  """Runs a model's predictions or scores over enumerated datasets."""

  def __init__(
      self,
      model: models.BaseModel,
      partitioner: partitioning.PjitPartitioner,
      batch_size: int,
  ):
    """Nothing is compiled before the first batch.

    Args:
      model: gives the step functions.
      partitioner: gives the mesh.
      batch_size: rows per batch.
    """
    self._partitioner = partitioner
    self._batch_size = partitioner.get_data_layout(batch_size).batch_size
    # Every process gets whole results.
    jit = functools.partial(jax.jit, out_shardings=partitioner.sharding())
    self._steps = {
        'predict': jit(model.predict_batch),
        'predict_with_aux': jit(model.predict_batch_with_aux),
        'score': jit(model.score_batch),
    }

  def batches(
      self, mode: str, state: TrainState, dataset: Any
  ) -> Iterator[tuple[np.ndarray, Any]]:
    """Runs a mode over a dataset.

    Args:
      mode: 'predict', 'predict_with_aux' or 'score'.
      state: gives the parameters.
      dataset: pairs (index, features), not batched.

    Yields:
      Indices of the rows, -1 for padding, and the results.
    """
    params = state.params
    for number, (indices, batch) in enumerate(
        datasets.padded_batches(dataset, self._batch_size)):
      key = jax.random.fold_in(jax.random.key(0), number)
      yield indices, self.run_batch(mode, params, batch, key)

  def run_batch(
      self,
      mode: str,
      params: models.Params,
      batch: datasets.NumpyBatch,
      key: Array,
  ) -> Any:
    """Runs a mode over one batch that every process has.

    Args:
      mode: 'predict', 'predict_with_aux' or 'score'.
      params: nested parameters.
      batch: all rows.
      key: for decoding strategies that draw.

    Returns:
      The results as numpy arrays, rows first.
    """
    rng = () if mode == 'score' else (key,)
    with self._partitioner.scope():
      placed = self._partitioner.global_batch(batch)
      return jax.device_get(self._steps[mode](params, placed, *rng))

  def program(
      self,
      mode: str,
      params: models.Params,
      features: Mapping[str, tuple[tuple[int, ...], Any]],
  ) -> str:
    """Names what a mode computes: model, decoding strategy, shapes, devices.

    Args:
      mode: 'predict', 'predict_with_aux' or 'score'.
      params: nested parameters.
      features: shape without a batch axis, and dtype, of every feature.

    Returns:
      SHA-256 of the program before any optimisation.
    """
    batch = {
        name: jax.ShapeDtypeStruct(
            (self._batch_size, *shape), dtype,
            sharding=self._partitioner.batch_sharding)
        for name, (shape, dtype) in features.items()}
    rng = () if mode == 'score' else (jax.random.key(0),)
    with self._partitioner.scope():
      text = self._steps[mode].lower(params, batch, *rng).as_text()
    return hashlib.sha256(text.encode()).hexdigest()

  def run(
      self, mode: str, state: TrainState, dataset: Any
  ) -> list[tuple[int, Any]]:
    """As `batches`, but row by row and without padding, as SeqIO wants it."""
    results: list[tuple[int, Any]] = []
    for indices, outputs in self.batches(mode, state, dataset):
      rows = zip(indices.tolist(), outputs, strict=True)
      results.extend((i, row) for i, row in rows if i >= 0)
    return results

  def run_with_aux(
      self, state: TrainState, dataset: Any
  ) -> tuple[list[tuple[int, Any]], dict[str, list[Any]]]:
    """Predictions row by row, and auxiliary values in the same order."""
    results: list[tuple[int, Any]] = []
    aux: dict[str, list[Any]] = {}
    for indices, (outputs, extra) in self.batches(
        'predict_with_aux', state, dataset):
      real = indices >= 0
      results.extend(
          zip(indices[real].tolist(), outputs[real], strict=True))
      for name, values in extra.items():
        aux.setdefault(name, []).extend(np.asarray(values)[real].tolist())
    return results, aux


class InferenceEvaluation:
  """A hook: SeqIO's metrics of the model's predictions and scores."""

  def __init__(
      self,
      evaluator: Any,
      runner: InferenceRunner,
      folder: metric_writers.RunFolder,
  ):
    """Removes what an interrupted run wrote after its last save.

    Args:
      evaluator: a `seqio.Evaluator`; its loggers write the results.
      runner: makes predictions and scores.
      folder: where its loggers write.
    """
    self._evaluator = evaluator
    self._runner = runner
    self._say = folder.say
    folder.drop_rows('inference_eval/*-metrics.jsonl')

  def __call__(self, moment: loop.Moment) -> dict[str, dict[str, Any]]:
    """Evaluates every task, says what came out and returns it.

    Only the first process knows; the others return nothing.
    """
    run, step, state = self._runner, moment.step, moment.state
    future, _ = self._evaluator.evaluate(
        compute_metrics=jax.process_index() == 0,
        step=step,
        predict_fn=functools.partial(run.run, 'predict', state),
        score_fn=functools.partial(run.run, 'score', state),
        predict_with_aux_fn=functools.partial(run.run_with_aux, state))
    results = future.result() or {}
    for task, metrics in results.items():
      figures = '  '.join(
          f'{name} {value:.4g}' for name, value in metrics.items()
          if isinstance(value, int | float))
      self._say(f'step {step:,}  {task}: {figures}')
    return results


def inference_evaluation(
    model: models.BaseModel,
    partitioner: partitioning.PjitPartitioner,
    config: datasets.DatasetConfig,
    evaluator_cls: Callable[..., Any],
    folder: metric_writers.RunFolder,
) -> InferenceEvaluation | None:
  """SeqIO's metrics on the data of a configuration.

  Args:
    model: makes predictions and scores.
    partitioner: gives the mesh.
    config: what to read.
    evaluator_cls: a `seqio.Evaluator`.
    folder: where its loggers write.

  Returns:
    The hook; None if no task has metrics.
  """
  evaluator = datasets.make_evaluator(
      config, evaluator_cls,
      datasets.feature_converter(model.FEATURE_CONVERTER_CLS),
      f'{folder.directory}/inference_eval')
  return evaluator and InferenceEvaluation(
      evaluator, InferenceRunner(model, partitioner, config.batch_size), folder)
