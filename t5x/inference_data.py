"""The examples that `t5x.infer` runs over, as they are and as features.

Uses SeqIO; everything downstream sees numpy arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import seqio
from t5x import datasets
import tensorflow as tf

Example = dict[str, Any]
NumpyBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class InferenceExamples:
  """One task's examples of one job shard, in their order.

  Attributes:
    name: the task's name.
    pairs: a dataset of (example, model features), not batched.
    source: names the content of a file that the examples come from; None if
      the task does not say.
    has_targets: whether there is anything to score.
  """

  name: str
  pairs: tf.data.Dataset
  source: str | None
  has_targets: bool

  def feature_shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape without a batch axis, and dtype, of every model feature."""
    return {name: (tuple(spec.shape), spec.dtype.as_numpy_dtype)
            for name, spec in self.pairs.element_spec[1].items()}

  def read(self, skip: int) -> Iterator[tuple[Example, NumpyBatch]]:
    """The pairs after the first `skip` of them."""
    yield from self.pairs.skip(skip).as_numpy_iterator()


def inference_examples(
    config: datasets.DatasetConfig,
    converter: seqio.FeatureConverter,
    shard_id: int = 0,
    num_shards: int = 1,
) -> list[InferenceExamples]:
  """Every example of a configuration's tasks, once.

  Args:
    config: what to read.
    converter: makes model features.
    shard_id: which part of them.
    num_shards: into how many parts they are cut.

  Returns:
    One value per task that has the split.

  Raises:
    DatasetError: if no task has the split.
  """
  provider = datasets.get_mixture_or_task(config)
  datasets.require_split(provider, config)
  found = []
  for task in seqio.get_subtasks(provider):
    if config.split not in task.splits:
      continue
    rows = task.get_dataset(
        config.task_feature_lengths, config.split, shuffle=False,
        num_epochs=1, use_cached=config.use_cached, seed=config.seed,
        shard_info=seqio.ShardInfo(shard_id, num_shards),
        trim_output_features=config.trim_output_features)
    features = converter(rows, task_feature_lengths=config.task_feature_lengths)
    found.append(InferenceExamples(
        task.name, tf.data.Dataset.zip((rows, features)),
        getattr(task.source, 'identity', None),
        getattr(task.source, 'has_targets', True)))
  return found


def padded(
    rows: Sequence[Mapping[str, np.ndarray]], batch_size: int) -> NumpyBatch:
  """One batch of at most `batch_size` rows; the last row fills it up."""
  filled = [*rows, *([rows[-1]] * (batch_size - len(rows)))]
  return {name: np.stack([row[name] for row in filled]) for name in rows[0]}
