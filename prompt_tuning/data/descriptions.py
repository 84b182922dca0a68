"""What there is to know of a task before a run: source, splits, lengths."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np
import seqio
from t5x import datasets
from t5x import inspection


@dataclasses.dataclass(frozen=True)
class TaskDescription:
  """A task or mixture in words; nothing of its data is opened.

  Attributes:
    name: SeqIO name.
    source: the TFDS dataset, the kind of another source, or the parts of a
      mixture.
    splits: its splits; None if only the data say.
    metrics: names of its metrics.
    words: what its targets may be; empty if that is open or unknown.
  """

  name: str
  source: str
  splits: Sequence[str] | None
  metrics: Sequence[str]
  words: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of a feature over some examples.

  Attributes:
    feature: its name.
    count: examples.
    least: of the shortest.
    median: of the middle one.
    mean: on average.
    most: that 95 % of the examples do not exceed.
    greatest: of the longest.
    cut: share of the examples that are longer than the limit; None without a
      limit.
  """

  feature: str
  count: int
  least: int
  median: float
  mean: float
  most: float
  greatest: int
  cut: float | None


def describe(provider: seqio.Task | seqio.Mixture) -> TaskDescription:
  """Describes a task or mixture."""
  if isinstance(provider, seqio.Mixture):
    parts = [f'{_rate(provider, task)} {task.name}' for task in provider.tasks]
    metrics = {name for task in provider.tasks for name in _metrics(task)}
    return TaskDescription(
        provider.name, ' + '.join(parts), None, sorted(metrics), ())
  source = provider.source
  dataset = getattr(source, 'tfds_dataset', None)
  # TFDS is asked for splits that a task does not list.
  splits = getattr(source, '_splits', ()) or None if dataset else source.splits
  return TaskDescription(
      provider.name,
      dataset.name if dataset else type(source).__name__,
      None if splits is None else list(splits), _metrics(provider),
      _words(provider.postprocessor))


def _rate(mixture: seqio.Mixture, task: seqio.Task) -> str:
  """The weight of a task; one that the data decide is described."""
  rate = mixture.rate_per_task_name.get(task.name)
  return str(rate) if callable(rate) else f'{mixture.get_rate(task):g}'


def _metrics(task: seqio.Task) -> list[str]:
  """Names of a task's metric functions."""
  return [_metric(fn).__name__ for fn in task.metric_fns]


def _metric(function: Any) -> Any:
  """What a metric function computes, whatever is bound to it or wraps it."""
  while isinstance(function, functools.partial):
    function = next(filter(callable, function.args), function.func)
  return function


def _words(postprocessor: Any) -> Sequence[str]:
  """The label words that a postprocessor knows."""
  if not isinstance(postprocessor, functools.partial):
    return ()
  if 'label_classes' in postprocessor.keywords:
    return list(postprocessor.keywords['label_classes'])
  bound = (postprocessor.func, *postprocessor.args,
           *postprocessor.keywords.values())
  return next(filter(None, map(_words, bound)), ())


def require_data(provider: seqio.Task | seqio.Mixture) -> None:
  """Fails if the data of a task are not where TFDS looks for them.

  Args:
    provider: the task or mixture.

  Raises:
    DatasetError: naming the dataset and how to prepare it.
  """
  for task in seqio.get_subtasks(provider):
    dataset = getattr(task.source, 'tfds_dataset', None)
    if dataset is None:
      continue
    try:
      there = bool(dataset.info.splits)
    except ValueError:  # Neither TFDS nor the folder has such a dataset.
      there = False
    if not there:
      folder = dataset.data_dir or '~/tensorflow_datasets'
      raise datasets.DatasetError(
          f'{task.name} reads {dataset.name}, which is not in {folder}. Name '
          'its folder with --tfds_data_dir, or prepare it: tfds build '
          f'{dataset.name}, or prompt_tuning.scripts.make_dataset for what '
          'TFDS does not have.')


def examples(
    provider: seqio.Task | seqio.Mixture,
    split: str,
    count: int,
    lengths: Mapping[str, int] | None = None,
) -> list[inspection.Row]:
  """The first examples of a split as SeqIO makes them, not cut.

  Args:
    provider: the task or mixture.
    split: which split.
    count: how many at most.
    lengths: for tasks that cannot do without, as those of denoising; what they
      cut is not seen then.

  Returns:
    Features by name.

  Raises:
    DatasetError: if there is no such split.
  """
  if split not in provider.splits:
    raise datasets.DatasetError(
        f'{provider.name!r} has no split {split!r}; it has '
        f'{sorted(provider.splits)}.')
  made = provider.get_dataset(
      lengths, split, shuffle=False, num_epochs=1, trim_output_features=False)
  return list(made.take(count).as_numpy_iterator())


def length_statistics(
    rows: Sequence[inspection.Row],
    features: Sequence[str],
    limits: Mapping[str, int] | None = None,
) -> list[Lengths]:
  """How long examples are, feature by feature.

  Args:
    rows: examples, not cut.
    features: names; those that are no lists of tokens are left out.
    limits: tokens per feature that a run would keep.

  Returns:
    Figures of every feature that some example has.
  """
  found = []
  for name in features:
    lengths = np.array([len(row[name]) for row in rows
                        if name in row and np.ndim(row[name]) == 1])
    if not lengths.size:
      continue
    limit = (limits or {}).get(name)
    found.append(Lengths(
        name, lengths.size, int(lengths.min()), float(np.median(lengths)),
        float(lengths.mean()), float(np.percentile(lengths, 95)),
        int(lengths.max()),
        None if limit is None else float((lengths > limit).mean())))
  return found
