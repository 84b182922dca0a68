"""Writes predictions or scores: `python -m t5x.infer --gin_file=...`.

One JSON object per example, in T5X's shape:

    {"inputs": {"inputs_pretokenized": ...}, "prediction": "..."}
    {"inputs": {...}, "score": -1.5}
"""

from collections.abc import Callable, Iterator, Mapping
import json
from typing import Any

from etils import epath
import jax
import numpy as np
from t5x import checkpoints
from t5x import datasets
from t5x import evaluation
from t5x import explain
from t5x import initialization
from t5x import metric_writers
from t5x import models
from t5x import partitioning
from t5x import program

MODES = ('predict', 'score', 'predict_with_aux')


def infer(
    *,
    mode: str,
    model: models.BaseModel,
    dataset_cfg: datasets.DatasetConfig,
    restore_checkpoint_cfg: checkpoints.RestoreCheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    output_dir: str,
    summarize_config_fn: Callable[..., None] | None = None,
    fallback_init_rng: int | None = None,
    use_orbax: bool = True,
    dry_run: bool = False,
) -> list[str]:
  """Runs a checkpoint over every example of a task or mixture.

  Args:
    mode: 'predict', 'score' or 'predict_with_aux'.
    model: what is run.
    dataset_cfg: the task or mixture, and its split.
    restore_checkpoint_cfg: the checkpoint.
    partitioner: the mesh.
    output_dir: where `<task>-<mode>.jsonl-00000-of-00001` is written.
    summarize_config_fn: called with the folder, None (T5X's summary writer)
      and the step, to write the configuration.
    fallback_init_rng: seed of parameters that are not in the checkpoint.
    use_orbax: accepted for T5X's gin files; any layout is read.
    dry_run: explain the run, and write and compute nothing.

  Returns:
    The files that were written.

  Raises:
    ValueError: for a configuration that cannot be run.
  """
  if mode not in MODES:
    raise ValueError(
        f'infer.mode is {mode!r}; expected one of {", ".join(MODES)}.')
  del use_orbax
  if dry_run:
    metric_writers.Terminal(0, 0).say(
        explain.inference(model, partitioner, dataset_cfg))
    return []
  converter = datasets.feature_converter(model.FEATURE_CONVERTER)
  datasets.verify_matching_vocabs(
      dataset_cfg, model.input_vocabulary, model.output_vocabulary)
  runner = evaluation.InferenceRunner(
      model, partitioner, dataset_cfg.batch_size)
  state = initialization.inference_state(
      model, partitioner, restore_checkpoint_cfg,
      datasets.some_feature_shapes(converter), fallback_init_rng)
  if summarize_config_fn is not None and jax.process_index() == 0:
    summarize_config_fn(output_dir, None, int(state.step))
  terminal = metric_writers.Terminal(0, 0)
  files = []
  for name, examples in datasets.inference_examples(
      dataset_cfg, converter).items():
    rows = _rows(mode, examples, runner.batches(
        mode, state, examples.features), model.output_vocabulary)
    path = f'{output_dir}/{name}-{mode}.jsonl-00000-of-00001'
    count = _write(path, rows)
    if jax.process_index() == 0:
      terminal.say(f'{path}: {count:,} rows')
    files.append(path)
  return files


def _rows(
    mode: str,
    examples: datasets.InferenceExamples,
    batches: Iterator[tuple[np.ndarray, Any]],
    vocabulary: Any,
) -> Iterator[dict[str, Any]]:
  """Results with the texts that they belong to."""
  texts = iter(examples.texts)
  for indices, outputs in batches:
    for row in np.flatnonzero(indices >= 0):
      yield {'inputs': next(texts),
             **_result(mode, outputs, int(row), vocabulary)}


def _result(
    mode: str, outputs: Any, row: int, vocabulary: Any) -> dict[str, Any]:
  """The result of one row."""
  if mode == 'score':
    return {'score': float(outputs[row])}
  tokens, aux = outputs if mode == 'predict_with_aux' else (outputs, None)
  result: dict[str, Any] = {
      'prediction': vocabulary.decode([int(t) for t in tokens[row]])}
  if isinstance(aux, Mapping):
    result['aux'] = {name: np.asarray(value)[row].tolist()
                     for name, value in aux.items()}
  return result


def _write(path: str, rows: Iterator[dict[str, Any]]) -> int:
  """Writes all rows or, if something fails, no file; returns their number.

  All processes compute, the first one writes.
  """
  file = epath.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary = file.parent / f'{file.name}.tmp-{jax.process_index()}'
  count = 0
  with temporary.open('w') as stream:
    for row in rows:
      stream.write(json.dumps(row, ensure_ascii=False) + '\n')
      count += 1
  if jax.process_index() == 0:
    temporary.replace(file)
  else:
    temporary.unlink()
  return count


if __name__ == '__main__':
  program.main(infer)
