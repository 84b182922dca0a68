"""A model for notebooks: restored once, compiled once, asked many times.

model = gin_utils.value_of('%MODEL', ['models/t5_1_1_base.gin'])
ask = InteractiveModel(
model=model, checkpoint_path='/x/checkpoint_1100000', batch_size=8,
task_feature_lengths={'inputs': 64, 'targets': 16})
ask.predict(['translate English to German: hello'])
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any

import jax
import numpy as np
from t5x import checkpoints
from t5x import datasets
from t5x import evaluation
from t5x import file_tasks
from t5x import inference_data
from t5x import inference_loop
from t5x import inference_rows
from t5x import inference_state
from t5x import models
from t5x import partitioning
from t5x import train_state as train_state_lib

# An input, an input and a target, or T5X's {'input': ..., 'target': ...}.
Example = str | tuple[str, str] | Mapping[str, str]


@dataclasses.dataclass(kw_only=True)
class InteractiveModel:
  """Predicts and scores texts; the results are those of `t5x.infer`.

  Attributes:
    model: what is asked.
    checkpoint_path: a model's checkpoint, or a run's own.
    batch_size: rows that are computed at once; fewer are filled up.
    task_feature_lengths: tokens of `inputs` and `targets`; longer texts are
      cut.
    partitioner: the mesh; None is one copy of the model per device.
    dtype: of the restored parameters; None keeps the model's.
    restore_mode: 'specific', or 'latest' of a folder.
    parameters: values by path that take the place of the checkpoint's.
    base_checkpoint_path: where the frozen base of a run's own checkpoint is, if
      not where it was.
    base_checks: see `RestoreCheckpointConfig`.
    init_random_seed: of parameters that are in neither; not used where the
      checkpoint has them all.
    add_eos: end texts with the end token.
    output_dir: accepted for T5X's calls; nothing is written.
    input_shapes: accepted for T5X's calls; they follow from the lengths.
    input_types: accepted for T5X's calls.
    eval_names: accepted for T5X's calls.
    train_state: the parameters, once made.
  """

  model: models.BaseModel
  checkpoint_path: str
  batch_size: int
  task_feature_lengths: Mapping[str, int]
  partitioner: partitioning.PjitPartitioner | None = None
  dtype: str | None = None
  restore_mode: str = 'specific'
  parameters: Mapping[str, np.ndarray] = dataclasses.field(
      default_factory=dict)
  base_checkpoint_path: str | None = None
  base_checks: Sequence[Callable[..., None]] = ()
  init_random_seed: int = 42
  add_eos: bool = True
  output_dir: str | None = None
  input_shapes: Any = None
  input_types: Any = None
  eval_names: Sequence[str] | None = None
  train_state: train_state_lib.TrainState = dataclasses.field(init=False)

  def __post_init__(self):
    """Restores the parameters.

    Raises:
      ValueError: if they cannot be, or the batch cannot be cut over devices.
    """
    self.partitioner = self.partitioner or partitioning.PjitPartitioner(1)
    self._converter = datasets.feature_converter(
        self.model.FEATURE_CONVERTER_CLS)
    self._runner = evaluation.InferenceRunner(
        self.model, self.partitioner, self.batch_size)
    restore = checkpoints.RestoreCheckpointConfig(
        path=self.checkpoint_path, mode=self.restore_mode, dtype=self.dtype,
        assignment_map=[(re.escape(f'target/{path}'), None)
                        for path in self.parameters],
        fallback_to_scratch=bool(self.parameters),
        base_checks=self.base_checks)
    (directory,) = inference_state.directories(restore)
    restorer = inference_state.Restorer(
        self.model, self.partitioner, restore,
        datasets.some_feature_shapes(self._converter),
        seed=self.init_random_seed if self.parameters else None,
        base_checkpoint_path=self.base_checkpoint_path)
    given = {}
    for path, value in self.parameters.items():
      wanted = restorer.infos[path].shape if path in restorer.infos else None
      if value.shape != wanted:
        raise ValueError(
            f'InteractiveModel.parameters gives {path} {list(value.shape)}, '
            f'but the model has {wanted and list(wanted)}.')
      given[path] = jax.device_put(
          value.astype(restorer.infos[path].dtype), restorer.placement[path])
    state = restorer.state(directory)
    self.train_state = state.replace(frozen=state.frozen | given)

  @property
  def step(self) -> int:
    """The checkpoint's step."""
    return int(self.train_state.step)

  def predict(self, examples: Sequence[Example]) -> list[Any]:
    """Predictions as texts, in the order of the examples."""
    return self._decoded(self._infer('predict', examples)[0])

  def predict_with_aux(
      self, examples: Sequence[Example]) -> tuple[list[Any], dict[str, Any]]:
    """As `predict`, and auxiliary values by name in the same order."""
    results, aux = self._infer('predict_with_aux', examples)
    return self._decoded(results), {
        name: inference_rows.plain(value) for name, value in aux.items()}

  def score(self, examples: Sequence[Example]) -> list[float]:
    """Log likelihoods of the targets.

    Args:
      examples: pairs of input and target.

    Returns:
      A score per example.

    Raises:
      ValueError: if an example has no target.
    """
    return [float(score) for score in self._infer('score', examples)[0]]

  def evaluate(
      self,
      examples: Sequence[Example],
      metric_fns: Sequence[Callable[..., Mapping[str, Any]]],
  ) -> dict[str, Any]:
    """Figures of the predictions or scores.

    Args:
      examples: pairs of input and target.
      metric_fns: called with the targets, and with predictions or scores,
        whichever a function's second argument is called.

    Returns:
      All figures by name.
    """
    targets = [_row(example, targets=True)['targets'] for example in examples]
    figures: dict[str, Any] = {}
    for metric in metric_fns:
      scored = datasets.metric_takes_scores(metric)
      found = self.score(examples) if scored else self.predict(examples)
      figures |= metric(targets, found)
    return figures

  def _decoded(self, results: Sequence[Any]) -> list[Any]:
    """Tokens as texts."""
    return [inference_rows.decoded(tokens, self.model.output_vocabulary)
            for tokens in results]

  def _infer(
      self, mode: str, examples: Sequence[Example]
  ) -> inference_rows.Inferences:
    """Runs a mode through the same steps as `t5x.infer`."""
    if isinstance(examples, str) or not examples:
      raise ValueError(
          f'InteractiveModel.{mode}: expected a list of at least one example, '
          f'found {examples!r}.')
    rows = [_row(example, targets=mode == 'score') for example in examples]
    features = datasets.features_of(
        self.model.input_vocabulary, self.model.output_vocabulary,
        self.add_eos)
    (task,) = inference_data.inference_examples(
        datasets.DatasetConfig(
            file_tasks.make_task('interactive', rows, features),
            self.task_feature_lengths, file_tasks.SPLIT, self.batch_size,
            shuffle=False, seed=0),
        self._converter)
    return inference_loop.infer_chunk(
        self._runner, mode, self.train_state.params,
        [batch for _, batch in task.read(0)], batch_size=self.batch_size)


def _row(example: Example, targets: bool) -> dict[str, str]:
  """An example as the fields of a task, with its target or without."""
  values: Sequence[Any] = ()
  if isinstance(example, str):
    values = [example]
  elif isinstance(example, Mapping):
    values = [example[name] for name in ('input', 'target') if name in example]
  elif isinstance(example, tuple | list):
    values = example
  if len(values) < 1 + int(targets) or not all(
      isinstance(value, str) for value in values[:2]):
    wanted = "('input', 'target')" if targets else "'input'"
    raise ValueError(
        f'InteractiveModel: an example is {example!r}; expected {wanted}.')
  names = ('inputs', 'targets')[:1 + int(targets)]
  return dict(zip(names, values, strict=False))  # A target may be left over.
