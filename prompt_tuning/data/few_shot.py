"""Small training sets: a few examples of every class, or a few in all.

    MIXTURE_OR_TASK_NAME = @few_shot.task()
    few_shot.task:
      mixture_or_task_name = 'glue_rte_v200_examples'
      count = 16
      class_field = 'label'
      seed = 0

Which examples are drawn depends on the seed and on the source's own order.
Other splits stay whole.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import heapq
import itertools
from typing import Any

import numpy as np
import seqio
from t5x import datasets
import tensorflow as tf

Example = Mapping[str, Any]


def task(
    mixture_or_task_name: str,
    count: int,
    *,
    class_field: str | None = None,
    seed: int = 0,
    split: str = 'train',
) -> str:
  """Registers a task with a small training set; asked again, the same one.

  Args:
    mixture_or_task_name: the task; of a mixture, every task that has the split.
    count: examples; of every class if there is a `class_field`.
    class_field: the field of the source's examples that holds their class;
      examples of class -1, which have no label, are left out. None draws
      `count` examples in all.
    seed: of the draw.
    split: which split becomes small.

  Returns:
    The name: the given one and `_<count>_per_<class_field>_seed<seed>`, or
    `_<count>_examples_seed<seed>` without classes.

  Raises:
    DatasetError: if there is no such task or split, or `count` is not positive.
  """
  if count < 1:
    raise datasets.DatasetError(
        f'few_shot.task.count is {count}; expected at least 1.')
  provider = datasets.provider_of(mixture_or_task_name)
  if split not in provider.splits:
    raise datasets.DatasetError(
        f'{mixture_or_task_name!r} has no split {split!r}; it has '
        f'{sorted(provider.splits)}.')
  kind = 'examples' if class_field is None else f'per_{class_field}'
  ending = f'_{count}_{kind}_seed{seed}'
  ending += '' if split == 'train' else f'_{split}'

  def small(source: seqio.Task) -> str:
    if split not in source.splits:
      return source.name
    name = source.name + ending
    if name not in seqio.TaskRegistry.names():
      seqio.TaskRegistry.add_provider(name, source.replace(
          name=name, source=FewShotSource(
              source.source, split, count, class_field=class_field,
              seed=seed)))
    return name

  if isinstance(provider, seqio.Task):
    return small(provider)
  name = provider.name + ending
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, [
        (small(part), provider.get_rate(part))
        for part in seqio.get_subtasks(provider)])
  return name


class FewShotSource(seqio.DataSource):
  """A source of which one split is a draw of a few examples."""

  def __init__(
      self,
      source: seqio.DataSource,
      split: str,
      count: int,
      *,
      class_field: str | None,
      seed: int,
  ):
    """Nothing is read before the split is asked for.

    Args:
      source: what is drawn from.
      split: the split that becomes small.
      count: see `task`.
      class_field: see `task`.
      seed: see `task`.
    """
    self._source = source
    self._split = split
    self._count = count
    self._class_field = class_field
    self._seed = seed
    super().__init__(
        splits=source.splits, caching_permitted=source.caching_permitted)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """SeqIO shards the examples itself."""
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    """One shard of the small split, those of the source otherwise."""
    return [split] if split == self._split else self._source.list_shards(split)

  def num_input_examples(self, split: str) -> int | None:
    """Known without reading for whole splits only."""
    if split == self._split:
      return None
    return self._source.num_input_examples(split)

  def get_dataset(
      self, split: str = 'train', *args: Any, **options: Any
  ) -> tf.data.Dataset:
    """See `seqio.DataSource`; the draw comes in the source's order."""
    if split != self._split:
      return self._source.get_dataset(split, *args, **options)
    chosen, spec = self._drawn
    return tf.data.Dataset.from_generator(
        lambda: iter(chosen), output_signature=spec)

  @functools.cached_property
  def _drawn(self) -> tuple[list[Example], Any]:
    """The chosen examples and their types; reads the split once."""
    dataset = self._source.get_dataset(self._split, shuffle=False)
    rng = np.random.default_rng(self._seed)
    kept: dict[Any, list[tuple[float, int, Example]]] = {}
    for number, (label, example) in enumerate(
        self._labelled(dataset.as_numpy_iterator())):
      # The examples with the greatest of random numbers are a uniform draw.
      entry = rng.random(), number, example
      group = kept.setdefault(label, [])
      if len(group) < self._count:
        heapq.heappush(group, entry)
      else:
        heapq.heappushpop(group, entry)
    self._require_enough(kept)
    chosen = sorted(itertools.chain(*kept.values()), key=lambda entry: entry[1])
    return [example for _, _, example in chosen], dataset.element_spec

  def _labelled(
      self, examples: Iterator[Example]) -> Iterator[tuple[Any, Example]]:
    """Examples that have a class, with it."""
    for example in examples:
      if self._class_field is None:
        yield None, example
        continue
      if self._class_field not in example:
        raise datasets.DatasetError(
            f'few_shot.task.class_field is {self._class_field!r}, but the '
            f'examples have the fields {sorted(example)}.')
      label = np.asarray(example[self._class_field])
      if label.shape:
        raise datasets.DatasetError(
            f'few_shot.task.class_field {self._class_field!r} holds '
            f'{label.dtype}{list(label.shape)}; expected one value.')
      if label.item() != -1:
        yield label.item(), example

  def _require_enough(self, kept: Mapping[Any, Sequence[Any]]) -> None:
    """Fails if a class has fewer examples than are wanted."""
    if not kept:
      raise datasets.DatasetError(
          f'few_shot.task: the split {self._split!r} has no example.')
    for label, group in sorted(kept.items(), key=str):
      if len(group) < self._count:
        what = 'in all' if self._class_field is None else f'of class {label!r}'
        raise datasets.DatasetError(
            f'few_shot.task.count is {self._count}, but the split '
            f'{self._split!r} has {len(group)} examples {what}.')
