"""Examples through `tf.data`."""

import pytest
import tensorflow as tf


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
