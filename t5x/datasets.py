"""SeqIO tasks as numpy batches. The only module that imports TensorFlow.

Everything downstream sees iterators of dictionaries of numpy arrays, so a
benchmark or a test can feed the engine without SeqIO.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import logging
import os
from typing import Any, TypeVar

import numpy as np


@contextlib.contextmanager
def _without_native_notices() -> Iterator[None]:
  """Keeps TensorFlow's notices about absent GPUs off the terminal.

  They come from C++ on file descriptor 2, whatever the log level; exceptions
  are not affected.
  """
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


with _without_native_notices():
  import seqio
  import tensorflow as tf

  # TensorFlow only prepares input; it must not take the accelerator's memory.
  tf.config.set_visible_devices([], 'GPU')

Evaluator = seqio.Evaluator
NumpyBatch = dict[str, np.ndarray]
T = TypeVar('T')
U = TypeVar('U')


class DatasetError(ValueError):
  """Input data that cannot be used, with what was expected and the fix."""


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """A task or mixture, and how its examples become batches.

  Attributes:
    mixture_or_task_name: SeqIO name, task or mixture.
    task_feature_lengths: tokens per feature; None in evaluation takes the
      longest example.
    split: name of the split.
    batch_size: rows of the global batch.
    shuffle: shuffle the examples.
    seed: seed of the shuffling; None takes the run's.
    use_cached: read SeqIO's offline cache.
    pack: put several examples in one row.
    use_custom_packing_ops: not supported; must be False.
    module: imported for its registrations.
    use_memory_cache: keep evaluation examples in memory.
    trim_output_features: cut features to their length.
  """

  mixture_or_task_name: str | seqio.Task | seqio.Mixture
  task_feature_lengths: Mapping[str, int] | None
  split: str
  batch_size: int
  shuffle: bool
  seed: int | None
  use_cached: bool = False
  pack: bool = False
  use_custom_packing_ops: bool = False
  module: str | None = None
  use_memory_cache: bool = True
  trim_output_features: bool = True

  def __post_init__(self):
    if self.use_custom_packing_ops:
      raise DatasetError(
          'DatasetConfig.use_custom_packing_ops needs tensor2tensor, which is '
          'no longer installable; leave it False.')


def import_module(name: str | None) -> None:
  """Imports a module for the tasks it registers; None does nothing.

  Raises:
    DatasetError: if there is no such module.
  """
  if not name:
    return
  try:
    importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise DatasetError(
        f'MIXTURE_OR_TASK_MODULE {name!r} cannot be imported ({error}); give '
        'an importable module that registers the task.') from error


def get_mixture_or_task(config: DatasetConfig) -> seqio.Task | seqio.Mixture:
  """The task or mixture of a configuration.

  Raises:
    DatasetError: if nothing of that name is registered, or the split or cache
      does not exist.
  """
  import_module(config.module)
  if not isinstance(config.mixture_or_task_name, str):
    return config.mixture_or_task_name
  provider = provider_of(config.mixture_or_task_name)
  for task in seqio.get_subtasks(provider):
    if config.use_cached and not task.cache_dir:
      raise DatasetError(
          f'USE_CACHED_TASKS is True, but the task {task.name!r} has no cache; '
          'set USE_CACHED_TASKS=False to prepare it on the fly.')
  return provider


def provider_of(name: str) -> seqio.Task | seqio.Mixture:
  """What is registered under a name.

  Raises:
    DatasetError: if nothing is, with the nearest names.
  """
  names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name not in names:
    raise DatasetError(
        f'MIXTURE_OR_TASK_NAME {name!r} is not registered. Nearest: '
        f'{_nearest(name, names)}. Set MIXTURE_OR_TASK_MODULE to the module '
        'that registers it.')
  return seqio.get_mixture_or_task(name)


def _nearest(name: str, names: Iterable[str]) -> str:
  """The most similar registered names."""
  found = difflib.get_close_matches(name, list(names), n=3, cutoff=0.3)
  return ', '.join(repr(n) for n in found) or 'none'


FeatureConverterCls = Callable[..., seqio.FeatureConverter]


def feature_converter_cls(
    cls: str | FeatureConverterCls) -> FeatureConverterCls:
  """What makes a converter, called with `pack`; a name is one of SeqIO's."""
  return getattr(seqio, cls) if isinstance(cls, str) else cls


def feature_converter(
    cls: str | FeatureConverterCls, pack: bool = False
) -> seqio.FeatureConverter:
  """A feature converter: by class, or by name where it is SeqIO's own."""
  return feature_converter_cls(cls)(pack=pack)


def get_dataset(
    config: DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: FeatureConverterCls,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
  """This process's share of every training batch.

  Args:
    config: what to read; its seed decides the order alone. `train` fills in the
      run's seed where there is none.
    shard_id: which share.
    num_shards: into how many the global batch is cut.
    feature_converter_cls: called with `pack`, makes model features.
    num_epochs: None repeats for ever.
    continue_from_last_checkpoint: must be False; a resumed run goes on where it
      was without it.

  Returns:
    Batches of `batch_size / num_shards` rows.

  Raises:
    DatasetError: if the task, its split or its lengths cannot be used.
  """
  if continue_from_last_checkpoint:
    raise DatasetError(
        'get_dataset.continue_from_last_checkpoint is not supported; leave it '
        'False. A resumed run finds its place in the data by itself.')
  provider = get_mixture_or_task(config)
  require_split(provider, config)
  return seqio.get_dataset(
      provider,
      task_feature_lengths=config.task_feature_lengths,
      feature_converter=feature_converter_cls(pack=config.pack),
      dataset_split=config.split,
      use_cached=config.use_cached,
      shuffle=config.shuffle,
      num_epochs=num_epochs,
      shard_info=seqio.ShardInfo(index=shard_id, num_shards=num_shards),
      verbose=False,
      seed=config.seed,
      batch_size=config.batch_size // num_shards,
      trim_output_features=config.trim_output_features)


def require_split(
    provider: seqio.Task | seqio.Mixture, config: DatasetConfig) -> None:
  """Fails if no task of the provider has the split, or lengths are missing.

  Raises:
    DatasetError: naming the splits or the features that there are.
  """
  if config.split not in provider.splits:
    raise DatasetError(
        f'{provider.name!r} has no split {config.split!r}; it has '
        f'{sorted(provider.splits)}.')
  if config.task_feature_lengths is None:
    raise DatasetError(
        f'TASK_FEATURE_LENGTHS is missing for {provider.name!r}; give one '
        f'length per feature of {sorted(provider.output_features)}.')


def get_training_eval_datasets(
    config: DatasetConfig,
    shard_id: int,
    num_shards: int,
    eval_steps: int | None,
    feature_converter_cls: FeatureConverterCls,
    deterministic: bool = False,
    model_dir: str | None = None,
    start_step: int = 0,
) -> dict[str, tf.data.Dataset]:
  """Batches for evaluation with the training loss, per task.

  Args:
    config: what to read.
    shard_id: which share of each batch.
    num_shards: into how many a batch is cut.
    eval_steps: batches per evaluation; short sets are repeated. None takes
      every example once, and fills the last batch with rows of zeros, which
      weigh nothing.
    feature_converter_cls: called with `pack`, makes model features.
    deterministic: must be False; T5X never published what it stands for.
    model_dir: for functions of your own in the place of this one.
    start_step: likewise.

  Returns:
    From task name to batches, for tasks that have the split; a mixture of
    several adds itself.

  Raises:
    DatasetError: if no task has the split.
  """
  del model_dir, start_step
  if deterministic:
    raise DatasetError(
        'get_training_eval_datasets.deterministic is not supported; leave it '
        'False.')
  provider = get_mixture_or_task(config)
  tasks = [task for task in seqio.get_subtasks(provider)
           if config.split in task.splits]
  if not tasks:
    require_split(provider, config)
  providers = {task.name: task for task in tasks}
  if isinstance(provider, seqio.Mixture) and len(tasks) > 1:
    providers[provider.name] = provider
  datasets = {}
  for name, part in providers.items():
    single = dataclasses.replace(
        config, mixture_or_task_name=part, batch_size=num_shards)
    rows = get_dataset(
        single, 0, 1, feature_converter_cls, num_epochs=1).unbatch()
    batch_size = config.batch_size // num_shards
    if eval_steps is None:
      batches = rows.shard(num_shards, shard_id).batch(batch_size).map(
          functools.partial(_filled, batch_size=batch_size))
    else:
      batches = (rows.repeat().shard(num_shards, shard_id)
                 .batch(batch_size, drop_remainder=True).take(eval_steps))
    datasets[name] = batches.cache() if config.use_memory_cache else batches
  return datasets


def _filled(
    batch: Mapping[str, tf.Tensor], batch_size: int) -> dict[str, tf.Tensor]:
  """A batch with rows of zeros up to a size."""
  filled = {}
  for name, rows in batch.items():
    missing = batch_size - tf.shape(rows)[0]
    filled[name] = tf.ensure_shape(
        tf.pad(rows, [[0, missing]] + [[0, 0]] * (len(rows.shape) - 1)),
        [batch_size, *rows.shape[1:]])
  return filled


def model_feature_shapes(
    config: DatasetConfig, converter: seqio.FeatureConverter
) -> dict[str, tuple[int, ...]]:
  """Shapes of the global batches, known before any data is read."""
  lengths = converter.get_model_feature_lengths(config.task_feature_lengths)
  return {name: (config.batch_size, length)
          for name, length in lengths.items()}


def model_feature_types(converter: seqio.FeatureConverter) -> dict[str, Any]:
  """Numpy types of the model's features, known before any data is read."""
  types = {name: spec.dtype for name, spec in converter.MODEL_FEATURES.items()}
  if converter.pack:
    types |= converter.PACKING_FEATURE_DTYPES
  return {name: dtype.as_numpy_dtype for name, dtype in types.items()}


def some_feature_shapes(
    converter: seqio.FeatureConverter) -> dict[str, tuple[int, ...]]:
  """Shapes of a small batch: parameters do not depend on them."""
  lengths = converter.get_model_feature_lengths(
      dict.fromkeys(converter.TASK_FEATURES, 2))
  return {name: (1, length) for name, length in lengths.items()}


def numpy_batches(
    dataset: tf.data.Dataset, skip: int = 0) -> Iterator[NumpyBatch]:
  """Iterates a dataset as numpy arrays.

  Args:
    dataset: batches.
    skip: batches that an interrupted run has taken already. They are prepared
      and thrown away, which gives exactly the batches that would have followed.

  Yields:
    Batches.
  """
  if skip:
    logging.info('Going to batch %d of the training data.', skip)
  yield from dataset.skip(skip).as_numpy_iterator()


def padded_batches(
    dataset: tf.data.Dataset, batch_size: int
) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
  """Batches of an enumerated dataset, the last one padded.

  Args:
    dataset: pairs (index, features) without a batch axis.
    batch_size: rows per batch.

  Yields:
    Indices, -1 for padding, and features; padding rows repeat the last row.
  """
  for indices, features in dataset.batch(batch_size).as_numpy_iterator():
    short = batch_size - len(indices)
    yield (
        np.pad(indices, (0, short), constant_values=-1),
        {name: np.concatenate([x, np.repeat(x[-1:], short, axis=0)])
         for name, x in features.items()})


def prefetch(
    items: Iterator[T], transform: Callable[[T], U], depth: int = 2
) -> Iterator[U]:
  """Transforms items in a thread of its own, a few ahead of the consumer.

  The thread begins at once, so the first items are prepared while the caller
  does other things.

  Args:
    items: the source.
    transform: applied in the thread, for instance the transfer to the device.
    depth: items that wait at most.

  Returns:
    Transformed items in order; an error of the thread is raised there.
  """
  end: Any = object()

  def load():
    item = next(items, end)
    return end if item is end else transform(item)

  pool = futures.ThreadPoolExecutor(1, 'prefetch')
  waiting = collections.deque(pool.submit(load) for _ in range(depth))

  def consume() -> Iterator[U]:
    with pool:
      while (item := waiting.popleft().result()) is not end:
        waiting.append(pool.submit(load))
        yield item

  return consume()


def make_evaluator(
    config: DatasetConfig,
    evaluator_cls: Callable[..., seqio.Evaluator],
    converter: seqio.FeatureConverter,
    log_dir: str | None,
) -> seqio.Evaluator | None:
  """A SeqIO evaluator of a configuration's tasks; None if none has metrics."""
  provider = get_mixture_or_task(config)
  options = {} if log_dir else {'logger_cls': ()}
  evaluator = evaluator_cls(
      mixture_or_task_name=provider.name,
      feature_converter=converter,
      eval_split=config.split,
      use_cached=config.use_cached,
      seed=config.seed,
      sequence_length=config.task_feature_lengths,
      use_memory_cache=config.use_memory_cache,
      log_dir=log_dir,
      **options)
  if not evaluator.eval_tasks:
    logging.info('No task of %s has both a split %r and metrics; it is not '
                 'evaluated.', provider.name, config.split)
    return None
  return evaluator


def features_of(
    inputs: seqio.Vocabulary, targets: seqio.Vocabulary, add_eos: bool = True
) -> dict[str, seqio.Feature]:
  """The features of text-to-text tasks in given vocabularies."""
  return {'inputs': seqio.Feature(inputs, add_eos=add_eos),
          'targets': seqio.Feature(targets, add_eos=add_eos)}


def metric_takes_scores(metric: Callable[..., Any]) -> bool:
  """Whether a metric is of scores, not of predictions; SeqIO's rule."""
  return 'scores' in inspect.signature(metric).parameters


def get_vocabulary(
    config: DatasetConfig) -> tuple[seqio.Vocabulary, seqio.Vocabulary]:
  """Vocabularies of inputs and targets; the targets' twice without inputs."""
  features = get_mixture_or_task(config).output_features
  targets = features['targets'].vocabulary
  return features.get('inputs', features['targets']).vocabulary, targets


def round_vocab_size_to_multiple(
    vocabulary: seqio.Vocabulary, divisor: int = 128) -> int:
  """A vocabulary's size, rounded up so that tables divide well."""
  return -(-vocabulary.vocab_size // divisor) * divisor


def verify_matching_vocabs(
    config: DatasetConfig, input_vocabulary: Any, output_vocabulary: Any,
) -> None:
  """Fails if a task was tokenised with other vocabularies than the model's.

  Raises:
    DatasetError: naming both.
  """
  expected = (input_vocabulary, output_vocabulary)
  found = get_vocabulary(config)
  for side, ours, theirs in zip(
      ('inputs', 'targets'), expected, found, strict=True):
    if isinstance(theirs, seqio.PassThroughVocabulary):
      continue
    if ours != theirs:
      raise DatasetError(
          f'{config.mixture_or_task_name!r} tokenises its {side} with '
          f'{theirs}, but the model has {ours}. Use the task for this model '
          'family, or set VOCABULARY.')


def verify_model_vocabs(config: DatasetConfig, model: Any) -> None:
  """T5X's call of `verify_matching_vocabs`.

  Raises:
    DatasetError: see there.
  """
  verify_matching_vocabs(
      config, model.input_vocabulary, model.output_vocabulary)


def set_data_dirs(
    tfds_data_dir: str | None, cache_dirs: Sequence[str] = ()) -> None:
  """Tells SeqIO where TFDS data and offline caches are."""
  if tfds_data_dir:
    seqio.set_tfds_data_dir_override(tfds_data_dir)
  seqio.add_global_cache_dirs([d for d in cache_dirs if d])
