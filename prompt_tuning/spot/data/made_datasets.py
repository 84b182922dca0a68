"""Datasets of SPoT that TFDS does not have, made from files of one's own.

Their tasks are registered as the others are, and find the data once
`prompt_tuning.scripts.make_dataset` has written them in TFDS's format:

    customer_reviews        Hu and Liu, 2004: no public split
    crisscrossed_captions   Parekh et al., 2021: captions are COCO's
    social_i_qa             Sap et al., 2019: labels are in a file of their own
    abductive_nli           Bhagavatula et al., 2020: likewise
"""

from collections.abc import Iterator, Mapping
import os

from etils import epath
import numpy as np
from t5x import datasets
from t5x import table_files
import tensorflow_datasets as tfds

VERSION = '1.0.0'
TEXT = tfds.features.Text()
# By dataset, then by column.
FEATURES = {
    'customer_reviews': {
        'sentence': TEXT,
        'label': tfds.features.ClassLabel(names=['negative', 'positive'])},
    'crisscrossed_captions': {
        'sentence1': TEXT, 'sentence2': TEXT,
        'label': tfds.features.Scalar(np.float32)},
    'social_i_qa': {
        'context': TEXT, 'question': TEXT,
        'answer1': TEXT, 'answer2': TEXT, 'answer3': TEXT,
        'label': tfds.features.ClassLabel(names=['1', '2', '3'])},
    'abductive_nli': {
        'observation1': TEXT, 'observation2': TEXT,
        'hypothesis1': TEXT, 'hypothesis2': TEXT,
        'label': tfds.features.ClassLabel(names=['1', '2'])},
}


def make(name: str, files: Mapping[str, str], data_dir: str) -> str:
  """Writes a dataset in TFDS's format.

  Args:
    name: one of `FEATURES`.
    files: a `.jsonl`, `.csv` or `.tsv` file for every split.
    data_dir: TFDS's folder.

  Returns:
    Where the dataset is.

  Raises:
    DatasetError: if it is there already, or a file is not as it should be;
      nothing is written then.
  """
  folder = epath.Path(data_dir) / name / VERSION
  if folder.exists():
    raise datasets.DatasetError(
        f'{folder} is there already; remove it to make it anew.')
  columns = FEATURES[name]
  rows = {split: [(number, example) for number, example in enumerate(
      _examples(path, columns))] for split, path in files.items()}
  tfds.dataset_builders.store_as_tfds_dataset(
      name=name, version=VERSION,
      features=tfds.features.FeaturesDict(columns), split_datasets=rows,
      data_dir=data_dir, disable_shuffling=True)
  return os.fspath(folder)


def _examples(
    path: str, columns: Mapping[str, tfds.features.FeatureConnector]
) -> Iterator[dict[str, object]]:
  """The rows of a file as TFDS takes them."""
  hint = f'The columns are {list(columns)}.'
  table = table_files.read(path, '--files')
  table.require_columns(list(columns), hint)
  for row in table.rows:
    yield {name: _value(row, name, feature, hint)
           for name, feature in columns.items()}


def _value(
    row: table_files.Row, name: str,
    feature: tfds.features.FeatureConnector, hint: str,
) -> str | float:
  """A cell, checked: a text, a number or a label's name."""
  if feature is TEXT:
    return row.text(name, hint)
  found = row.cells.get(name)
  if isinstance(feature, tfds.features.ClassLabel):
    if str(found) not in feature.names:
      raise datasets.DatasetError(
          f'{row.place}: {name!r} is {found!r}; expected one of '
          f'{feature.names}. {hint}')
    return str(found)
  try:
    number = float(str(found))
  except ValueError:
    number = np.nan
  if not np.isfinite(number):
    raise datasets.DatasetError(
        f'{row.place}: {name!r} is {found!r}; expected a number. {hint}')
  return number
