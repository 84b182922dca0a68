"""Examples through `tf.data`, and tiny datasets where TFDS finds them."""

import itertools
import json
import pathlib

from prompt_tuning.spot.data import made_datasets
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds


@pytest.fixture(scope='session')
def mapped():
  """`mapped(preprocessor, example, ...)`: what a dataset of one becomes."""
  def run(preprocessor, *examples, **options):
    def generate():
      yield from examples

    def spec(value):
      if isinstance(value, dict):
        return {key: spec(part) for key, part in value.items()}
      if isinstance(value, list):
        kind = type(value[0]) if value else str
        return tf.TensorSpec([None], DTYPES[kind])
      return tf.TensorSpec([], DTYPES[type(value)])

    # A generator knows no static lengths, as TFDS's lists do not.
    ds = tf.data.Dataset.from_generator(
        generate, output_signature=spec(examples[0]))
    return [plain(x)
            for x in preprocessor(ds, **options).as_numpy_iterator()]

  return run


DTYPES = {str: tf.string, int: tf.int64, float: tf.float32}


def plain(value):
  """Texts and lists in place of bytes and arrays."""
  if isinstance(value, dict):
    return {key: plain(part) for key, part in value.items()}
  if isinstance(value, bytes):
    return value.decode()
  return plain(value.tolist()) if hasattr(value, 'tolist') else (
      [plain(part) for part in value] if isinstance(value, list) else value)


def unlabelled(row):
  """An example of a split whose answers are not published."""
  return {**row, **{key: value for key, value in (
      ('label', -1), ('answers', [])) if key in row}}


def write_tfds(folder, dataset, features, splits):
  """Writes rows as TFDS does.

  Args:
    folder: of the version.
    dataset: name of the dataset, without configuration.
    features: of the dataset.
    splits: rows by split, and how many there are; they repeat.
  """
  folder.mkdir(parents=True)
  infos = []
  for split, (rows, count) in splits.items():
    records = [features.serialize_example(features.encode_example(row))
               for row in rows]
    path = folder / f'{dataset}-{split}.tfrecord-00000-of-00001'
    with tf.io.TFRecordWriter(str(path)) as writer:
      for record in itertools.islice(itertools.cycle(records), count):
        writer.write(record)
    infos.append(tfds.core.SplitInfo(
        name=split, shard_lengths=[count], num_bytes=path.stat().st_size))
  tfds.folder_dataset.write_metadata(
      data_dir=str(folder), features=features, split_infos=infos,
      filename_template=tfds.core.ShardedFileTemplate(
          data_dir=folder, dataset_name=dataset, filetype_suffix='tfrecord'),
      check_data=False)


@pytest.fixture(scope='session')
def tiny_tfds(tmp_path_factory):
  """The folder of tiny datasets, of every version that a task names.

  Features are those that TFDS declares, or `made_datasets`. The rows stand in
  `tiny_tfds.json`, which says of a split how many more there are than these.
  """
  root = tmp_path_factory.mktemp('tfds')
  table = pathlib.Path(__file__).with_name('tiny_tfds.json')
  for name, entry in json.loads(table.read_text()).items():
    features = (
        tfds.features.FeaturesDict(made_datasets.FEATURES[name])
        if name in made_datasets.FEATURES else
        tfds.builder(name, data_dir=root / 'none').info.features)
    rows = [{key: row[key] for key in features} for row in entry['rows']]
    splits = {
        split: ([unlabelled(row) for row in rows]
                if split in entry['unlabelled'] else rows, len(rows) + more)
        for split, more in entry['splits'].items()}
    for version in entry['versions']:
      write_tfds(
          root / name / version, name.split('/')[0], features, splits)
  seqio.set_tfds_data_dir_override(str(root))
  yield root
  seqio.set_tfds_data_dir_override(None)
