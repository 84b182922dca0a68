"""Writes predictions or scores: `python -m t5x.infer --gin_file=...`.

The rows are `t5x.inference_rows`, the files `t5x.inference_files`. A run that
was killed goes on when the same command is given again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
from t5x import checkpoints
from t5x import datasets
from t5x import evaluation
from t5x import explain
from t5x import file_tasks
from t5x import gin_utils
from t5x import inference_data
from t5x import inference_files
from t5x import inference_loop
from t5x import inference_rows
from t5x import inference_state
from t5x import initialization
from t5x import inspection
from t5x import keyword_options
from t5x import metric_writers
from t5x import model_info
from t5x import models
from t5x import partitioning
from t5x import program

MODES = ('predict', 'score', 'predict_with_aux')

# What gin files name as `infer_script.NAME`, besides `infer`.
FOR_GIN = ('create_task_from_tfexample_file', 'merge_chunks_to_file',
           'write_inferences_to_file')
create_task_from_tfexample_file = file_tasks.create_task_from_tfexample_file
merge_chunks_to_file = inference_files.merge_chunks_to_file


def write_inferences_to_file(
    path: str,
    inferences: inference_rows.Inferences,
    task_ds: Iterable[Mapping[str, Any]],
    mode: str,
    vocabulary: Any = None,
    include_all_inputs: bool = False,
    input_fields_to_include: Sequence[str] | None = None,
    output_ids: bool = False,
) -> None:
  """Writes results with the examples that they belong to.

  Args:
    path: the file.
    inferences: results and auxiliary values.
    task_ds: the examples.
    mode: what was inferred.
    vocabulary: decodes predictions.
    include_all_inputs: write every field of an example, not only the texts.
    input_fields_to_include: write these fields instead.
    output_ids: write the tokens of predictions too, up to the first padding.
  """
  results, aux = inferences

  def rows() -> Iterator[dict[str, Any]]:
    for index, (example, result) in enumerate(
        zip(task_ds, results, strict=True)):
      row: dict[str, Any] = {'inputs': inference_rows.shown_inputs(
          example, include_all_inputs, input_fields_to_include)}
      if mode == 'score':
        row['score'] = float(result)
      else:
        row['prediction'] = inference_rows.decoded(result, vocabulary)
        if output_ids:
          row['prediction_tokens'] = inference_rows.without_padding(result)
      if aux:
        row['aux'] = inference_rows.aux_of_row(aux, index)
      yield row

  inference_rows.write(path, rows())


@dataclasses.dataclass(frozen=True)
class InferOptions:
  """Further arguments of `infer`, with T5X's names unless said.

  Attributes:
    base_checkpoint_path: not T5X's: where the frozen base of a run's own
      checkpoint is, if not where it was.
    labels: not T5X's: with mode 'predict', score these texts as targets and
      give the best; the task must have an example per input and label, as
      `file_tasks.create_task_from_file` makes them.
    merge_fn: makes the output of the chunks.
    checkpoint_ds_iter: accepted for T5X's gin files; a resumed run finds its
      place in the data by counting.
    output_vocab_feature_name: accepted for T5X's gin files; predictions are
      decoded with the model's output vocabulary.
    file_extension: of the output.
    keep_aux_as_numpy: give auxiliary values to `write_fn` as numpy arrays.
    verify_matching_vocabs_fn: called with `dataset_cfg` and the model; None
      checks nothing.
    train_state_initializer_cls: must be None: how a state begins is not
      configurable.
    use_orbax: accepted for T5X's gin files; any layout is read.
    dry_run: resolve the configuration, and write and compute nothing.
  """

  base_checkpoint_path: str | None = None
  labels: Sequence[str] | None = None
  merge_fn: Callable[..., None] = merge_chunks_to_file
  checkpoint_ds_iter: bool = True
  output_vocab_feature_name: str = 'targets'
  file_extension: str = 'jsonl'
  keep_aux_as_numpy: bool = False
  verify_matching_vocabs_fn: Callable[..., None] | None = (
      datasets.verify_model_vocabs)
  train_state_initializer_cls: None = None
  use_orbax: bool = True
  dry_run: bool = False

  def __post_init__(self):
    initialization.require_no_initializer(
        self.train_state_initializer_cls, 'infer')


@keyword_options.fields_of(InferOptions)
def infer(
    *,
    mode: str,
    model: models.BaseModel,
    dataset_cfg: datasets.DatasetConfig,
    restore_checkpoint_cfg: checkpoints.RestoreCheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    output_dir: str,
    checkpoint_period: int = 100,
    shard_id: int = 0,
    num_shards: int = 1,
    merge_chunked_results: bool = True,
    write_fn: Callable[..., None] = write_inferences_to_file,
    summarize_config_fn: Callable[..., None] | None = None,
    fallback_init_rng: int | None = None,
    **options: Any,
) -> list[str]:
  """Runs a checkpoint over every example of a task or mixture.

  Args:
    mode: 'predict', 'score' or 'predict_with_aux'.
    model: what is run.
    dataset_cfg: the task or mixture, and its split.
    restore_checkpoint_cfg: the checkpoint: of a model, or of a run.
    partitioner: the mesh.
    output_dir: where `<task>-<mode>.jsonl-SSSSS-of-NNNNN` is written.
    checkpoint_period: batches per chunk; a killed run loses one at most.
    shard_id: which part of the examples, of a job that is cut in several.
    num_shards: into how many it is cut.
    merge_chunked_results: False leaves the chunks as they are.
    write_fn: as `write_inferences_to_file`.
    summarize_config_fn: called with the folder, None (T5X's summary writer)
      and the step, to write the configuration.
    fallback_init_rng: seed of parameters that are not in the checkpoint.
    **options: fields of `InferOptions`.

  Returns:
    The outputs, one per task.

  Raises:
    ValueError: for a configuration that cannot be run.
  """
  extra = InferOptions(**options)
  _require_usable(mode, checkpoint_period, (shard_id, num_shards), extra.labels)
  if extra.dry_run:
    metric_writers.Terminal(0, 0).say(
        explain.inference(model, partitioner, dataset_cfg))
    return []
  directory = _one_checkpoint(restore_checkpoint_cfg)
  converter = datasets.feature_converter(model.FEATURE_CONVERTER_CLS)
  if extra.verify_matching_vocabs_fn is not None:
    extra.verify_matching_vocabs_fn(dataset_cfg, model)
  runner = evaluation.InferenceRunner(
      model, partitioner, dataset_cfg.batch_size)
  configuration = {
      'mode': mode, 'split': dataset_cfg.split, 'labels': extra.labels,
      'task_feature_lengths': dataset_cfg.task_feature_lengths,
      'batch_size': dataset_cfg.batch_size, 'seed': dataset_cfg.seed,
      'checkpoint_period': checkpoint_period, 'checkpoint': directory,
      'write_fn': gin_utils.bindings_of(write_fn)}
  jobs = []
  for examples in inference_data.inference_examples(
      dataset_cfg, converter, shard_id, num_shards):
    files = inference_files.ShardFiles(
        output_dir, examples.name, mode, shard_id, num_shards,
        extra.file_extension)
    _require_targets(mode, examples)
    if jax.process_index() == 0:
      files.require_same(configuration | {'source': examples.source})
    jobs.append((examples, files))

  restorer = inference_state.Restorer(
      model, partitioner, restore_checkpoint_cfg,
      datasets.some_feature_shapes(converter), seed=fallback_init_rng,
      base_checkpoint_path=extra.base_checkpoint_path)
  state = restorer.state(directory)
  configuration['parameters'] = restorer.fingerprint(state)
  if shard_id == 0 and jax.process_index() == 0:
    _write_summaries(output_dir, restorer, state, summarize_config_fn)
  if extra.labels:
    write_fn = functools.partial(_write_rankings, labels=extra.labels)
  loop = inference_loop.InferenceLoop(
      mode=mode, step='score' if extra.labels else mode, runner=runner,
      params=state.params, vocabulary=model.output_vocabulary,
      write_fn=write_fn, batch_size=dataset_cfg.batch_size,
      chunk_rows=_chunk_rows(
          checkpoint_period * dataset_cfg.batch_size, extra.labels),
      keep_aux_as_numpy=extra.keep_aux_as_numpy)
  folder = metric_writers.RunFolder(
      output_dir, metric_writers.Terminal(0, 0),
      silent=jax.process_index() != 0)
  folder.say(*inspection.cut_features(dataset_cfg))
  for examples, files in jobs:
    folder.say(loop.run(examples, files, configuration, functools.partial(
        files.finish, extra.merge_fn, int(state.step), merge_chunked_results)))
  return [files.output_path for _, files in jobs]


def _require_usable(
    mode: str, checkpoint_period: int, shard: tuple[int, int],
    labels: Sequence[str] | None,
) -> None:
  """Fails on arguments that contradict themselves."""
  if mode not in MODES:
    raise ValueError(
        f'infer.mode is {mode!r}; expected one of {", ".join(MODES)}.')
  if checkpoint_period < 1:
    raise ValueError(
        f'infer.checkpoint_period is {checkpoint_period}; expected at least '
        'one batch per chunk.')
  shard_id, num_shards = shard
  if not 0 <= shard_id < num_shards:
    raise ValueError(
        f'infer.shard_id is {shard_id} and infer.num_shards is {num_shards}; '
        f'expected a shard from 0 to {num_shards - 1}.')
  if labels is not None and (mode != 'predict' or len(set(labels)) < 2
                             or len(set(labels)) != len(labels)):
    raise ValueError(
        f'infer.labels is {labels!r} with mode {mode!r}; expected at least two '
        "different texts, and the mode 'predict', which then takes the best.")


def _one_checkpoint(restore: checkpoints.RestoreCheckpointConfig) -> str:
  """The checkpoint to infer with."""
  found = inference_state.directories(restore)
  if len(found) != 1:
    raise checkpoints.CheckpointError(
        f'infer runs one checkpoint, but {restore.path!r} with mode '
        f'{restore.mode!r} names {len(found)}; give CHECKPOINT_PATH one.')
  return found[0]


def _require_targets(
    mode: str, examples: inference_data.InferenceExamples) -> None:
  """Fails if there is nothing to score."""
  if mode == 'score' and not examples.has_targets:
    raise ValueError(
        f"infer.mode is 'score', but {examples.name} has no targets; name "
        'their field with TARGET_FIELD, or give LABELS and the mode predict.')


def _chunk_rows(wanted: int, labels: Sequence[str] | None) -> int:
  """Rows of a chunk; an example's labels are never in two chunks."""
  group = len(labels or '1')
  return max(wanted // group, 1) * group


def _write_rankings(
    path: str,
    inferences: inference_rows.Inferences,
    task_ds: Sequence[Mapping[str, Any]],
    mode: str,
    vocabulary: Any,
    *,
    labels: Sequence[str],
) -> None:
  """Writes the best label of every example."""
  del mode, vocabulary
  inference_rows.write(
      path, inference_rows.rankings(task_ds, inferences[0], labels))


def _write_summaries(
    output_dir: str,
    restorer: inference_state.Restorer,
    state: inference_state.TrainState,
    summarize_config_fn: Callable[..., None] | None,
) -> None:
  """Writes `config.gin` and `model-info.txt`."""
  folder = metric_writers.RunFolder(output_dir, metric_writers.Terminal(0, 0))
  folder.write_text('model-info.txt', model_info.model_info(
      restorer.infos, restorer.placement, state))
  if summarize_config_fn is not None:
    summarize_config_fn(output_dir, None, int(state.step))


if __name__ == '__main__':
  program.main(infer)
