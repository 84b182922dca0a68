"""Writes a run's batches once: `python -m t5x.export_batches --gin_file=...`.

The command line is that of `t5x.train`, with `runs/export_batches.gin` behind
the run file. `t5x.ready_batches` reads what is written.
"""

import dataclasses

from t5x import datasets
from t5x import metric_writers
from t5x import models
from t5x import program
from t5x import ready_batches
from t5x import train as train_lib

# A run file that binds arguments of `train` may be read too.
FOR_GIN = ('train',)
train = train_lib.train


def export_batches(
    *,
    model: models.BaseModel,
    train_dataset_cfg: datasets.DatasetConfig,
    output_dir: str,
    num_batches: int,
    random_seed: int | None = None,
    dry_run: bool = False,
) -> None:
  """Writes the first batches that a run would take.

  Args:
    model: says what features its batches have.
    train_dataset_cfg: the training data.
    output_dir: where to; must not exist.
    num_batches: how many; a run that reads them takes them over and over.
    random_seed: of the run, for the order of the data.
    dry_run: write nothing.

  Raises:
    ValueError: if the data or the folder cannot be used, or there is no seed,
      as the order is then not that of any run.
  """
  if train_dataset_cfg.seed is None:
    if random_seed is None:
      raise ValueError(
          'RANDOM_SEED is None; give the seed of the run whose batches are '
          'wanted.')
    train_dataset_cfg = dataclasses.replace(train_dataset_cfg, seed=random_seed)
  datasets.verify_model_vocabs(train_dataset_cfg, model)
  dataset = datasets.get_dataset(
      train_dataset_cfg, 0, 1,
      datasets.feature_converter_cls(model.FEATURE_CONVERTER_CLS))
  if dry_run:
    return
  ready_batches.write(
      output_dir, datasets.numpy_batches(dataset), num_batches)
  metric_writers.Terminal(0, 0).say(
      f'{output_dir}: {num_batches:,} batches of '
      f'{train_dataset_cfg.batch_size} rows')


if __name__ == '__main__':
  program.main(export_batches)
