"""A frozen model for serving: text in, text out, with TensorFlow alone.

The SavedModel holds the vocabulary, the computation as StableHLO and the
parameters as variables; whoever loads it needs TensorFlow, and tensorflow_text
where the vocabulary is SentencePiece's, but neither JAX nor this package.

  texts -> preprocessor -> model features -> model -> postprocessor -> texts
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import time
from typing import Any

import jax
from jax.experimental import jax2tf
import numpy as np
import seqio
from t5x import checkpoints
from t5x import datasets
from t5x import explain
from t5x import file_tasks
from t5x import inference_state
from t5x import keyword_options
from t5x import metric_writers
from t5x import models
from t5x import partitioning
import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx

# From tensors of texts to the model's features, and what the tensors are.
PreprocessorFn = Callable[..., Mapping[str, tf.Tensor]]
Signature = list[tf.TensorSpec]
PostprocessorFn = Callable[[Any], Mapping[str, tf.Tensor]]
MODES = ('predict', 'score')


def create_preprocessor(
    model: models.BaseTransformerModel,
    inference_mode: str,
    batch_size: int | None,
    task_feature_lengths: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
) -> tuple[PreprocessorFn, Signature]:
  """Tokenises texts as `t5x.infer` does those of a file.

  Args:
    model: says what features it takes.
    inference_mode: 'predict' takes inputs, 'score' inputs and targets.
    batch_size: texts per call; None is any number.
    task_feature_lengths: tokens of both; longer texts are cut.
    output_features: vocabularies of `inputs` and `targets`.

  Returns:
    The function and its arguments.
  """
  scores = inference_mode == 'score'
  row = {'inputs': '', 'targets': ''} if scores else {'inputs': ''}
  task = file_tasks.make_task('export', [row], output_features)

  def preprocess(*texts: tf.Tensor) -> Mapping[str, tf.Tensor]:
    rows = tf.data.Dataset.from_tensor_slices(
        dict(zip(row, texts, strict=True)))
    return _features(rows, texts[0], task, model, task_feature_lengths)

  return preprocess, _texts(batch_size, scores)


def create_preprocessor_from_task(
    model: models.BaseTransformerModel,
    inference_mode: str,
    batch_size: int | None,
    task_feature_lengths: Mapping[str, int],
    *,
    task_name: str,
    serialized_examples: bool = True,
    run_precache: bool = False,
    module: str | None = None,
) -> tuple[PreprocessorFn, Signature]:
  """Makes features of texts with the preprocessors of a SeqIO task.

  Args:
    model: says what features it takes.
    inference_mode: with 'score' and plain texts there is a tensor of targets.
    batch_size: texts per call; None is any number.
    task_feature_lengths: tokens of every feature.
    task_name: the task.
    serialized_examples: texts are serialized `tf.train.Example`s, whose fields
      have the names of the task's features; a field that is missing is empty.
      Otherwise they are the inputs themselves.
    run_precache: run the preprocessors before a cache too, if the task has one.
    module: imported for its registrations.

  Returns:
    The function and its arguments.

  Raises:
    DatasetError: if there is no such task, or its vocabulary is not the
      model's.
  """
  config = datasets.DatasetConfig(
      task_name, task_feature_lengths, 'none', 1, shuffle=False, seed=0,
      module=module)
  datasets.verify_model_vocabs(config, model)
  task = datasets.get_mixture_or_task(config)
  if not isinstance(task, seqio.Task):
    raise datasets.DatasetError(
        f'MIXTURE_OR_TASK_NAME {task_name!r} is a mixture, which has no '
        'preprocessors of its own; name one of its tasks.')
  scores = inference_mode == 'score' and not serialized_examples
  fields = list(task.output_features)

  def preprocess(*texts: tf.Tensor) -> Mapping[str, tf.Tensor]:
    if serialized_examples:
      rows = tf.io.parse_example(texts[0], dict.fromkeys(
          fields, tf.io.FixedLenFeature([], tf.string, '')))
    else:
      rows = {name: tf.fill(tf.shape(texts[0]), '') for name in fields}
      rows |= dict(zip(('inputs', 'targets'), texts, strict=False))
    examples = tf.data.Dataset.from_tensor_slices(rows)
    if run_precache:
      examples = task.preprocess_precache(examples)
    return _features(examples, texts[0], task, model, task_feature_lengths)

  return preprocess, _texts(batch_size, scores)


def _texts(batch_size: int | None, with_targets: bool) -> Signature:
  """Tensors of texts."""
  names = ['text_batch', 'targets'][:1 + int(with_targets)]
  return [tf.TensorSpec([batch_size], tf.string, name) for name in names]


def _features(
    examples: tf.data.Dataset,
    texts: tf.Tensor,
    task: seqio.Task,
    model: models.BaseTransformerModel,
    lengths: Mapping[str, int],
) -> Mapping[str, tf.Tensor]:
  """One batch of model features of as many examples as there are texts."""
  rows = seqio.trim_dataset(
      task.preprocess_postcache(examples, lengths, seed=0), lengths,
      task.output_features)
  converter = datasets.feature_converter(model.FEATURE_CONVERTER_CLS)
  features = converter(rows, task_feature_lengths=lengths)
  # A preprocessor that drops or doubles a text fails here.
  return features.batch(
      tf.size(texts, tf.int64), drop_remainder=True).get_single_element()


def create_postprocessor(
    vocab: seqio.Vocabulary,
    inference_mode: str,
    decode_outputs: bool = True,
    output_feature_names: Sequence[str] | None = None,
) -> PostprocessorFn:
  """Turns results into named tensors.

  Args:
    vocab: decodes predictions.
    inference_mode: 'predict' gives decodes and their scores, 'score' scores.
    decode_outputs: False leaves decodes as tokens.
    output_feature_names: names of the tensors; by default `output_0` and so on,
      as TensorFlow would call them.

  Returns:
    The function.
  """
  names = output_feature_names or ['output_0', 'output_1'][
      :1 + int(inference_mode == 'predict')]

  def decoded(tokens: tf.Tensor) -> tf.Tensor:
    flat = tf.reshape(tokens, [-1, tokens.shape[-1]])
    return tf.reshape(vocab.decode_tf(flat), tf.shape(tokens)[:-1])

  def postprocess(results: Any) -> Mapping[str, tf.Tensor]:
    if inference_mode == 'score':
      return dict(zip(names, [results], strict=True))
    tokens, aux = results
    first = decoded(tokens) if decode_outputs else tokens
    return dict(zip(names, [first, aux['scores']], strict=True))

  return postprocess


class ExportableModule(tf.Module):
  """Preprocessor, model and postprocessor with the parameters."""

  def __init__(
      self,
      preproc_tf_fn: PreprocessorFn,
      model_tf_fn: Callable[..., Any],
      postproc_tf_fn: PostprocessorFn,
      params: Mapping[str, Any],
      input_signature: Signature,
  ):
    """Takes a copy of the parameters.

    Args:
      preproc_tf_fn: from texts to features.
      model_tf_fn: from parameters and features to results.
      postproc_tf_fn: from results to named tensors.
      params: nested parameters.
      input_signature: what the preprocessor takes.
    """
    super().__init__()
    self._params = tf.nest.map_structure(
        lambda x: tf.Variable(np.asarray(x), trainable=False), params)

    def answer(*texts: tf.Tensor) -> Mapping[str, tf.Tensor]:
      # AutoGraph for what SeqIO maps over examples, as outside of functions;
      # TensorFlow has no public way to say it. JAX must not be rewritten.
      with ag_ctx.ControlStatusCtx(status=ag_ctx.Status.ENABLED):
        features = preproc_tf_fn(*texts)
      return postproc_tf_fn(model_tf_fn(self._params, features))

    self.__call__ = tf.function(
        answer, input_signature=input_signature, autograph=False)


@dataclasses.dataclass(frozen=True)
class SaveOptions:
  """Further arguments of `save`, with T5X's names unless said.

  Attributes:
    batch_size: texts per call; None takes any number.
    create_preprocessor_fn: makes the function from texts to features.
    create_postprocessor_fn: makes the function from results to tensors.
    exportable_module_cls: puts them together.
    native_lowering: accepted for T5X's gin files; StableHLO is always used.
    fallback_init_rng: not T5X's: seed of parameters that are not in the
      checkpoint.
    base_checkpoint_path: not T5X's: where the frozen base of a run's own
      checkpoint is, if not where it was.
    dry_run: explain what would be exported, and write nothing.
  """

  batch_size: int | None = None
  create_preprocessor_fn: Callable[..., Any] = create_preprocessor
  create_postprocessor_fn: Callable[..., Any] = create_postprocessor
  exportable_module_cls: Callable[..., tf.Module] = ExportableModule
  native_lowering: bool = True
  fallback_init_rng: int | None = None
  base_checkpoint_path: str | None = None
  dry_run: bool = False


@keyword_options.fields_of(SaveOptions)
def save(
    *,
    model: models.BaseTransformerModel,
    inference_mode: str,
    restore_checkpoint_cfg: checkpoints.RestoreCheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    output_features: Mapping[str, seqio.Feature] | None,
    task_feature_lengths: Mapping[str, int],
    output_dir: str,
    model_name: str,
    **options: Any,
) -> str | None:
  """Writes `<output_dir>/<model_name>_cpu/<version>`.

  The version is the time in seconds, so that a server takes the latest; the
  folder appears when it is complete.

  Args:
    model: what is exported, with how it decodes.
    inference_mode: 'predict' or 'score'.
    restore_checkpoint_cfg: the checkpoint: of a model, or of a run.
    partitioner: where the parameters are restored to.
    output_features: vocabularies of `inputs` and `targets`; None if the
      preprocessor has its own.
    task_feature_lengths: tokens of both.
    output_dir: a local folder.
    model_name: the name a server knows it by.
    **options: fields of `SaveOptions`.

  Returns:
    The SavedModel's folder; None in a dry run.

  Raises:
    ValueError: for a configuration that cannot be exported.
  """
  extra = SaveOptions(**options)
  _require_usable(inference_mode, output_dir, model_name, extra.batch_size)
  own = {} if output_features is None else {'output_features': output_features}
  preprocess, signature = extra.create_preprocessor_fn(
      model=model, inference_mode=inference_mode, batch_size=extra.batch_size,
      task_feature_lengths=task_feature_lengths, **own)
  terminal = metric_writers.Terminal(0, 0)
  if extra.dry_run:
    terminal.say(explain.inference(model, partitioner, datasets.DatasetConfig(
        file_tasks.make_task('export', [{'inputs': ''}], datasets.features_of(
            model.input_vocabulary, model.output_vocabulary)),
        task_feature_lengths, file_tasks.SPLIT, partitioner.mesh.size,
        shuffle=False, seed=0)))
    return None
  (directory,) = inference_state.directories(restore_checkpoint_cfg)
  state = inference_state.Restorer(
      model, partitioner, restore_checkpoint_cfg,
      datasets.some_feature_shapes(
          datasets.feature_converter(model.FEATURE_CONVERTER_CLS)),
      seed=extra.fallback_init_rng,
      base_checkpoint_path=extra.base_checkpoint_path).state(directory)
  module = extra.exportable_module_cls(
      preprocess, create_inference_function(model, inference_mode),
      extra.create_postprocessor_fn(
          vocab=model.output_vocabulary, inference_mode=inference_mode),
      state.params, signature)
  answer = module.__call__.get_concrete_function()
  _require_readable(answer, signature)
  path = _written(
      module, answer, pathlib.Path(output_dir) / f'{model_name}_cpu')
  terminal.say(f'{path}: {inference_mode}, of {directory}')
  return path


def create_inference_function(
    model: models.BaseTransformerModel, inference_mode: str
) -> Callable[..., Any]:
  """The model as a function of TensorFlow.

  Args:
    model: gives the step.
    inference_mode: 'predict' or 'score'.

  Returns:
    A function of nested parameters and features of any number of rows. It is
    for CPUs, and draws the same numbers in every call if it draws any.
  """
  steps: dict[str, Callable[..., Any]] = {
      'predict': model.predict_batch_with_aux, 'score': model.score_batch}
  step = steps[inference_mode]

  def run(params: Any, features: Any) -> Any:
    return step(params, features)

  return jax2tf.convert(
      jax.jit(run), polymorphic_shapes=(None, 'b, ...'), with_gradient=False,
      native_serialization_platforms=('cpu',))


def _require_usable(
    mode: str, output_dir: str, model_name: str, batch_size: int | None
) -> None:
  """Fails on what cannot be exported, before anything is read."""
  if mode not in MODES:
    raise ValueError(
        f'export_lib.save.inference_mode is {mode!r}; expected one of '
        f'{", ".join(MODES)}.')
  if '://' in output_dir:
    raise ValueError(
        f'MODEL_OUTPUT_DIR is {output_dir}; models are written to local or '
        'mounted folders only.')
  if not model_name or '/' in model_name:
    raise ValueError(
        f'MODEL_NAME is {model_name!r}; expected the name of a folder, without '
        'a slash.')
  if batch_size is not None and batch_size < 1:
    raise ValueError(
        f'BATCH_SIZE is {batch_size}; expected None or at least 1.')
  if jax.process_count() > 1:
    raise ValueError(
        f'There are {jax.process_count()} processes; a model is exported by '
        'one, which must hold all of it.')


def _require_readable(answer: Callable[..., Any], signature: Signature) -> None:
  """Fails if TensorFlow is too old for the program; it reads it when called.

  A task may refuse an empty text; that says nothing of the program.
  """
  texts = [tf.fill([spec.shape[0] or 1], '') for spec in signature]
  try:
    answer(*texts)
  except tf.errors.OpError as error:
    if 'XlaCallModule' in error.message:
      raise ValueError(
          f'TensorFlow {tf.__version__} cannot run what JAX {jax.__version__} '
          'exports of this model. Install a later TensorFlow, or an earlier '
          f'JAX. It says: {error.message.splitlines()[0][:300]}') from error


def _written(
    module: tf.Module, answer: Callable[..., Any], folder: pathlib.Path
) -> str:
  """Saves a module as the latest version in a folder."""
  version = int(time.time())
  while (folder / str(version)).exists():
    version += 1
  # A server that watches the folder looks at numbers only.
  unfinished = folder / f'unfinished-{version}'
  tf.saved_model.save(module, str(unfinished), signatures=answer)
  unfinished.rename(folder / str(version))
  return str(folder / str(version))
