"""One row per dataset, and the tasks that are derived from it.

A task's name is `{model}{variant}{dataset}{suffix}`:

    model    ''             T5's vocabulary
             'mt5_'         mT5's
             'byt5_'        bytes
    variant  ''             'sst2 sentence: ...'; the text names the task
             'taskless_'    'sentence: ...'
             'task_index_'  '<extra_id_6> sentence: ...'
    suffix   ''             metrics
             '_examples'    metrics, and samples of predictions as text

What is registered already stays: a family may register the tasks that its
mixtures take from another one, and a module may be imported again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any

from prompt_tuning.data import features as features_lib
from prompt_tuning.data import metrics as metrics_lib
from prompt_tuning.data import postprocessors
from prompt_tuning.data import preprocessors
from prompt_tuning.data import rank_classification
import seqio
import tensorflow as tf

Preprocessor = Callable[..., tf.data.Dataset]
Features = Mapping[str, seqio.Feature]
Kind = tuple[str, str]  # Variant and suffix.

PLAIN, TASKLESS, TASK_INDEX = VARIANTS = ('', 'taskless_', 'task_index_')
EXAMPLES = '_examples'
MODELS = tuple(features_lib.MODEL_TO_FEATURES)
ALL_KINDS: tuple[Kind, ...] = tuple(itertools.product(VARIANTS, (EXAMPLES, '')))
# The package `t5` has the tasks whose text names them, but without samples.
NEW_KINDS = tuple(kind for kind in ALL_KINDS if kind != (PLAIN, ''))
NAMELESS_KINDS = tuple(kind for kind in ALL_KINDS if kind[0] != PLAIN)
SAMPLED_KINDS = tuple((variant, EXAMPLES) for variant in VARIANTS)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset: where it is, how it becomes text, how answers are scored.

  Attributes:
    name: of its tasks, without prefixes and suffix.
    tfds: name, configuration and version in TFDS.
    text: preprocessors from the fields of TFDS to the texts `inputs` and
      `targets`.
    title: what samples of predictions call it.
    labels: the words of the classes, in the order of their numbers; none where
      the answer is free.
    postprocess: from a text to what the metrics compare; None is the text.
    metrics: of targets and predictions.
    splits: a task's splits, as splits or slices of TFDS; None is all of TFDS.
    task_index: which sentinel stands for the task.
    example_fields: what samples show of an example; None is inputs and targets.
    samples: options of `metrics.text_examples`.
  """

  name: str
  tfds: str
  text: tuple[Preprocessor, ...]
  title: str = ''
  labels: tuple[str, ...] = ()
  postprocess: Callable[..., Any] | None = None
  metrics: tuple[Callable[..., Any], ...] = ()
  splits: Mapping[str, str] | None = None
  task_index: int | None = None
  example_fields: tuple[str, ...] | None = None
  samples: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def class_id(labels: tuple[str, ...]) -> Callable[..., int]:
  """A postprocessor from label words to their numbers."""
  return functools.partial(
      postprocessors.string_label_to_class_id, label_classes=labels)


def with_examples(dataset: Dataset) -> Dataset:
  """Predictions keep what they were made of, and samples of them are shown.

  Args:
    dataset: a dataset; without a postprocessor it stays as it is, as nothing
      is evaluated.

  Returns:
    The dataset with other postprocessor and metrics.
  """
  if dataset.postprocess is None:
    return dataset
  shown: dict[str, Any] = (
      {'example_fields': dataset.example_fields}
      if dataset.example_fields else {})
  return dataclasses.replace(
      dataset,
      postprocess=functools.partial(
          postprocessors.postprocess_with_examples, dataset.postprocess,
          **shown),
      metrics=(
          *(functools.partial(metrics_lib.metric_with_examples, metric)
            for metric in dataset.metrics),
          functools.partial(
              metrics_lib.text_examples, task_name=dataset.title,
              **dataset.samples)))


def nameless(dataset: Dataset) -> Dataset:
  """The text without its first word, which names the task."""
  return dataclasses.replace(
      dataset, text=(*dataset.text, preprocessors.remove_first_text_token))


def to_tokens(dataset: Dataset, variant: str) -> list[Preprocessor]:
  """All preprocessors of a variant; what can be cached comes first.

  Args:
    dataset: a dataset.
    variant: one of `VARIANTS`.

  Returns:
    The preprocessors.

  Raises:
    ValueError: if the variant needs a task index and the dataset has none.
  """
  if variant != PLAIN:
    dataset = nameless(dataset)
  chain: list[Preprocessor] = [*dataset.text, seqio.preprocessors.tokenize]
  if variant == TASK_INDEX:
    if dataset.task_index is None:
      raise ValueError(
          f'{dataset.name!r} has no task_index, which says what sentinel its '
          f'variant {TASK_INDEX!r} begins with; give it one or register other '
          'kinds.')
    chain.append(functools.partial(
        preprocessors.add_sentinel_to_beginning, field='inputs',
        offset=dataset.task_index))
  return [*chain, seqio.CacheDatasetPlaceholder(),
          seqio.preprocessors.append_eos_after_trim]


def ranked(
    dataset: Dataset, *scores: Callable[..., Any], mode: str = 'eval'
) -> Dataset:
  """A dataset of which every label is scored, and the best is the answer.

  Args:
    dataset: a dataset with labels.
    *scores: metrics; one of all labels if none are given.
    mode: see `rank_classification`.

  Returns:
    The dataset with an example per label, and other evaluation.
  """
  return dataclasses.replace(
      dataset,
      text=(*dataset.text, functools.partial(
          rank_classification.rank_labels, labels=dataset.labels, mode=mode)),
      postprocess=rank_classification.postprocess,
      metrics=scores or (functools.partial(
          rank_classification.rank_classification_metric,
          num_classes=len(dataset.labels)),))


def held_out(count: int) -> dict[str, str]:
  """Splits of which the last examples of training validate.

  Args:
    count: how many.

  Returns:
    Slices of TFDS.
  """
  return {'train': f'train[:-{count}]', 'validation': f'train[-{count}:]'}


def register(
    dataset: Dataset,
    kinds: Iterable[Kind] = NEW_KINDS,
    models: Iterable[str] = MODELS,
) -> None:
  """Adds the tasks of a dataset to SeqIO's registry.

  Args:
    dataset: a dataset.
    kinds: pairs of variant and suffix.
    models: prefixes of model families.
  """
  for model, (variant, suffix) in itertools.product(models, kinds):
    add_task(
        f'{model}{variant}{dataset.name}{suffix}',
        with_examples(dataset) if suffix == EXAMPLES else dataset,
        to_tokens(dataset, variant),
        features_lib.MODEL_TO_FEATURES[model])


def register_plain(*datasets: Dataset) -> None:
  """Adds one task of each dataset: named in the text, in T5's vocabulary."""
  for dataset in datasets:
    register(dataset, [(PLAIN, '')], models=[''])


def register_mixture(
    name: str,
    members: Sequence[str],
    kinds: Iterable[Kind],
    models: Iterable[str] = MODELS,
) -> None:
  """Adds the same mixture of several kinds of tasks, in equal parts.

  Args:
    name: with `{prefix}` and `{suffix}` where those of a kind stand.
    members: names of tasks, likewise.
    kinds: pairs of variant and suffix.
    models: prefixes of model families.
  """
  for model, (variant, suffix) in itertools.product(models, kinds):
    kind = {'prefix': model + variant, 'suffix': suffix}
    add_mixture(
        name.format(**kind), [task.format(**kind) for task in members])


def add_task(
    name: str,
    dataset: Dataset,
    chain: Sequence[Preprocessor],
    features: Features = features_lib.T5_FEATURES,
) -> None:
  """Adds one task, unless there is one of its name.

  Args:
    name: of the task.
    dataset: gives the source, postprocessor and metrics.
    chain: the preprocessors.
    features: what the task gives to the model.
  """
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
        name,
        source=seqio.TfdsDataSource(
            dataset.tfds, splits=dict(dataset.splits or {}) or None),
        preprocessors=list(chain),
        output_features=features,
        postprocess_fn=dataset.postprocess,
        metric_fns=list(dataset.metrics))


def add_uncached(
    name: str, dataset: Dataset, splits: Mapping[str, str]) -> None:
  """Adds one task in T5's vocabulary that is never cached.

  Args:
    name: of the task.
    dataset: a dataset.
    splits: of the task, as splits or slices of TFDS.
  """
  add_task(
      name, dataclasses.replace(dataset, splits=splits),
      [*dataset.text, seqio.preprocessors.tokenize,
       seqio.preprocessors.append_eos_after_trim])


@dataclasses.dataclass(frozen=True)
class ExamplesProportional:
  """A task's weight: its number of training examples, up to a limit.

  Raffel et al., Exploring the limits of transfer learning, section 3.5.2:
  examples-proportional mixing with an artificial size limit, K. The data are
  asked for their size when a mixture is used, not before; of a dataset that a
  preprocessor makes more examples of, as RACE, the dataset's own count.

  Attributes:
    limit: K; SPoT's is 2^19.
  """

  limit: int = 2**19

  def __call__(self, task: seqio.Task) -> float:
    """The weight; 0 for a task that is only evaluated."""
    if 'train' not in task.splits:
      return 0.0
    return float(seqio.mixing_rate_num_examples(task, maximum=self.limit))

  def __str__(self) -> str:
    """As it is listed."""
    return f'(examples, at most {self.limit:,})'


def add_mixture(
    name: str,
    tasks: (Sequence[str] | Mapping[str, float]
            | Mapping[str, ExamplesProportional]),
) -> None:
  """Adds one mixture, unless there is one of its name.

  Args:
    name: of the mixture.
    tasks: names of tasks that are registered, with weights if not all alike.
  """
  rates = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, list(rates.items()))
