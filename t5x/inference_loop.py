"""Runs a model over examples in chunks that survive a kill.

A chunk's random key depends on its number alone, so a run that was interrupted
anywhere writes the bytes of one that was not.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from t5x import datasets
from t5x import evaluation
from t5x import inference_data
from t5x import inference_files
from t5x import inference_rows
from t5x import models


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceLoop:
  """What is run, and how its results are written.

  Attributes:
    mode: what `write_fn` is told.
    step: what is run: 'predict', 'score' or 'predict_with_aux'.
    runner: runs it.
    params: nested parameters.
    vocabulary: decodes predictions.
    write_fn: writes the results of a chunk.
    batch_size: rows per batch.
    chunk_rows: rows per chunk.
    keep_aux_as_numpy: give auxiliary values to `write_fn` as numpy arrays.
  """

  mode: str
  step: str
  runner: evaluation.InferenceRunner
  params: models.Params
  vocabulary: Any
  write_fn: Callable[..., None]
  batch_size: int
  chunk_rows: int
  keep_aux_as_numpy: bool = False

  def run(
      self,
      examples: inference_data.InferenceExamples,
      files: inference_files.ShardFiles,
      configuration: Mapping[str, Any],
      finish: Callable[[], None],
  ) -> str:
    """Makes the chunks that are not there yet, and finishes.

    All processes compute; the first reads and writes files.

    Args:
      examples: all examples of the shard.
      files: its files.
      configuration: what makes the rows; the program is added to it.
      finish: makes the output of the chunks.

    Returns:
      What to say of it.

    Raises:
      InferenceError: if the shard was begun with another configuration.
      ValueError: if there are no examples.
    """
    first = jax.process_index() == 0
    configuration = dict(
        configuration, source=examples.source, program=self.runner.program(
            self.step, self.params, examples.feature_shapes()))
    done = begun = 0
    if first:
      files.require_same(configuration)
      done = int(files.finished())
      if done:
        files.remove_chunks()
      else:
        files.begin(configuration)
        begun = files.next_chunk()
    if _from_first(done):
      return f'{files.output_path}: finished before'
    begun = _from_first(begun)
    rows = self._chunks(begun, examples, files)
    if first:
      finish()
    before = f' after {begun} chunks that were there' if begun else ''
    return f'{files.output_path}: {rows:,} results{before}'

  def _chunks(
      self,
      begun: int,
      examples: inference_data.InferenceExamples,
      files: inference_files.ShardFiles,
  ) -> int:
    """Makes all chunks from one on; returns their rows."""
    pairs = examples.read(begun * self.chunk_rows)
    rows = 0
    for number in itertools.count(begun):
      chunk = list(itertools.islice(pairs, self.chunk_rows))
      if not chunk and not number:
        raise datasets.DatasetError(
            f'{examples.name} has no examples in shard {files.shard_id} of '
            f'{files.num_shards}.')
      if not chunk:
        break
      rows += len(chunk)
      results, aux = infer_chunk(
          self.runner, self.step, self.params, [part for _, part in chunk],
          batch_size=self.batch_size, number=number)
      if not self.keep_aux_as_numpy:
        aux = jax.tree.map(inference_rows.plain, aux)
      if jax.process_index() == 0:
        files.write_chunk(number, functools.partial(
            self.write_fn, inferences=(results, aux),
            task_ds=[example for example, _ in chunk], mode=self.mode,
            vocabulary=self.vocabulary))
    return rows


def _from_first(number: int) -> int:
  """The first process's number, on all processes."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def infer_chunk(
    runner: evaluation.InferenceRunner,
    step: str,
    params: models.Params,
    chunk: Sequence[inference_data.NumpyBatch],
    *,
    batch_size: int,
    number: int = 0,
) -> inference_rows.Inferences:
  """The results of a chunk's rows, in their order.

  Args:
    runner: runs the model.
    step: 'predict', 'score' or 'predict_with_aux'.
    params: nested parameters.
    chunk: features of every row.
    batch_size: rows per batch; the last one is filled up.
    number: which chunk of a dataset this is; gives the random keys.

  Returns:
    Results and auxiliary values as numpy arrays, rows first.
  """
  key = jax.random.fold_in(jax.random.key(0), number)
  batches = []
  for index, start in enumerate(range(0, len(chunk), batch_size)):
    outputs = runner.run_batch(
        step, params,
        inference_data.padded(chunk[start:start + batch_size], batch_size),
        jax.random.fold_in(key, index))
    results, aux = outputs if isinstance(outputs, tuple) else (outputs, {})
    batches.append((results, dict(aux)))
  return jax.tree.map(
      lambda *parts: np.concatenate(parts)[:len(chunk)], *batches)
