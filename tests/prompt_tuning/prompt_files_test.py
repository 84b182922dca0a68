import logging
import pathlib
import re
import types

from etils.epath import backend
import jax.numpy as jnp
import numpy as np
from prompt_tuning import numpy_files
from prompt_tuning import prompt_artifacts
from prompt_tuning import prompt_files
from prompt_tuning import prompts
from prompt_tuning.interop import peft
from prompt_tuning.scripts import convert_prompt
import pytest
import safetensors.numpy

VALUES = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
OTHER = VALUES + 1
MODEL = {'token_embedder/embedding': jnp.asarray(VALUES)}
RECORD = prompt_artifacts.Record(
    shape=(8, 6), sha256=prompt_artifacts.sha256(VALUES), task='rte',
    base=prompt_artifacts.base_of(MODEL, '/models/checkpoint_5', 5))
T5X_NAME = 'encoder.prompt.prompt.prompt'


def numpy_checkpoint(root):
  folder = root / 'numpy_checkpoints' / 'checkpoint_7'
  numpy_files.write(str(folder / T5X_NAME), VALUES)
  return folder


def npz(root, **arrays):
  np.savez(root / 'a.npz', **arrays)
  return root / 'a.npz'


def tensors(root, **arrays):
  safetensors.numpy.save_file(arrays, root / 'a.safetensors')
  return root / 'a.safetensors'


def artifact(root):
  prompt_artifacts.write(root / 'a.artifact', VALUES, RECORD)
  return root / 'a.artifact'


def adapter(root):
  peft.write(root / 'adapter', VALUES)
  return root / 'adapter'


def both(root):
  """What a run of ours leaves at a step: the numpy file and its artifact."""
  folder = numpy_checkpoint(root)
  prompt_artifacts.write(
      folder / f'{T5X_NAME}{prompt_artifacts.SUFFIX}', VALUES, RECORD)
  return folder


def npy(root):
  np.save(root / 'a.npy', VALUES)
  return root / 'a.npy'


FORMATS = {
    'npy': npy,
    'T5X numpy checkpoint': lambda root: numpy_checkpoint(root) / T5X_NAME,
    'folder of it': numpy_checkpoint,
    'folder of it and its artifact': both,
    'file beside its artifact': lambda root: both(root) / T5X_NAME,
    'npz of one': lambda root: npz(root, anything=VALUES),
    'npz of several': lambda root: npz(root, other=OTHER, prompt=VALUES),
    'npz with PEFTs name': lambda root: npz(
        root, other=OTHER, prompt_embeddings=VALUES),
    'safetensors of one': lambda root: tensors(root, anything=VALUES),
    'safetensors of several': lambda root: tensors(
        root, other=OTHER, prompt=VALUES),
    'safetensors with PEFTs name': lambda root: tensors(
        root, other=OTHER, prompt_embeddings=VALUES),
    'adapter': adapter,
    'adapters tensor': lambda root: adapter(root) / 'adapter_model.safetensors',
    'artifact': artifact,
    'artifacts tensor': lambda root: artifact(root) / 'prompt.safetensors',
    'artifacts record': lambda root: artifact(root) / 'prompt.json',
}


@pytest.mark.parametrize('kind', FORMATS)
def test_a_prompt_of_any_format_is_read(tmp_path, kind):
  path = FORMATS[kind](tmp_path)
  np.testing.assert_array_equal(prompt_files.read(path), VALUES, strict=True)
  # The published spelling reads all of them too.
  np.testing.assert_array_equal(
      prompts.np_load(str(path), 'float64'), VALUES.astype(np.float64),
      strict=True)
  assert prompt_files.parent_of(path).sha256 == RECORD.sha256


@pytest.mark.parametrize('kind', ['npy', 'artifact'])
def test_a_parent_is_named_by_its_absolute_path(tmp_path, kind, monkeypatch):
  path = FORMATS[kind](tmp_path)
  monkeypatch.chdir(tmp_path)
  assert prompt_files.parent_of(path.name).file == str(path)


def test_an_array_is_found_by_its_name(tmp_path):
  path = npz(tmp_path, prompt=OTHER, rte=VALUES)
  np.testing.assert_array_equal(prompt_files.read(path, 'rte'), VALUES)
  with pytest.raises(ValueError, match=r"2 arrays.*expected 'sst2'"):
    prompt_files.read(path, 'sst2')


@pytest.mark.parametrize('name', ['', T5X_NAME])
def test_a_file_that_its_artifact_disowns_is_refused(tmp_path, name):
  folder = both(tmp_path)
  file = folder / T5X_NAME
  file.unlink()
  numpy_files.write(str(file), OTHER)
  with pytest.raises(
      prompt_files.PromptFileError, match='one of them has been changed'):
    prompt_files.read(folder / name)
  # What is meant can be said.
  np.testing.assert_array_equal(
      prompt_files.read(f'{file}{prompt_artifacts.SUFFIX}'), VALUES)
  np.testing.assert_array_equal(
      prompt_files.read(file.rename(tmp_path / 'moved')), OTHER)


def test_a_file_beside_a_damaged_artifact_is_refused(tmp_path):
  folder = both(tmp_path)
  (folder / f'{T5X_NAME}{prompt_artifacts.SUFFIX}' / 'prompt.json').unlink()
  with pytest.raises(prompt_artifacts.ArtifactError, match='prompt.json'):
    prompt_files.read(folder / T5X_NAME)


def test_in_a_remote_folder_the_plain_file_is_read(tmp_path, monkeypatch):
  both(tmp_path)
  bucket = tmp_path / 'bucket'
  (tmp_path / 'numpy_checkpoints').rename(bucket)

  def here(path):
    return pathlib.Path(str(path).replace('gs://bucket', str(bucket)))

  for name, function in {
      'exists': pathlib.Path.exists, 'isdir': pathlib.Path.is_dir,
      'listdir': lambda path: [p.name for p in path.iterdir()]}.items():
    monkeypatch.setattr(
        backend.tf_backend, name, lambda path, f=function: f(here(path)))
  assert prompt_files.located('gs://bucket/checkpoint_7') == (
      f'gs://bucket/checkpoint_7/{T5X_NAME}')


def test_a_part_of_an_adapter_is_read_as_the_adapter(tmp_path):
  # The tensor alone would be twice as long as the prompt.
  folder = adapter(tmp_path)
  table = np.concatenate([VALUES, np.zeros_like(VALUES)])
  safetensors.numpy.save_file(
      {peft.TENSOR: table}, folder / peft.TENSORS)
  config = folder / peft.CONFIG
  config.write_text(config.read_text().replace('submodules": 1',
                                               'submodules": 2'))
  np.testing.assert_array_equal(
      prompt_files.read(folder / peft.TENSORS), VALUES)


def _several(root):
  for name in ('encoder.prompt', 'decoder.prompt'):
    numpy_files.write(str(root / 'checkpoint_7' / name), VALUES)
  return root / 'checkpoint_7'


def _saved(array):
  def save(root):
    np.save(root / 'a.npy', array)
    return root / 'a.npy'

  return save


BAD = {
    'nothing': (lambda root: root / 'none', 'does not exist'),
    'no npz': (lambda root: root / 'none.npz', 'does not exist'),
    'no safetensors': (lambda root: root / 'none.safetensors', 'none'),
    'an empty folder': (lambda root: root, 'with 0 prompts'),
    'several in a folder': (
        _several, r"2 prompts.*'decoder.prompt', 'encoder.prompt'"),
    'a folder in a folder': (
        lambda root: numpy_checkpoint(root).parents[1], 'is a folder'),
    'several arrays': (lambda root: npz(root, a=VALUES, b=OTHER),
                       r'2 arrays.*prompt or prompt_embeddings'),
    'two that might be meant': (
        lambda root: npz(root, prompt=VALUES, prompt_embeddings=OTHER),
        '2 arrays'),
    'several tensors': (lambda root: tensors(root, a=VALUES, b=OTHER),
                        '2 arrays'),
    'a vector': (_saved(VALUES[0]), r'float32\[6\]; expected a prompt'),
    'three axes': (_saved(VALUES[None]), r'\[1, 8, 6\]'),
    'no rows': (_saved(VALUES[:0]), r'\[0, 6\]'),
    'whole numbers': (_saved(VALUES.astype(np.int32)), 'int32'),
    'objects': (_saved(np.array([[None]])), 'pickled'),
    'not a number': (_saved(VALUES * np.nan), 'not a number'),
    'not a number in safetensors': (
        lambda root: tensors(root, prompt=VALUES * np.inf), 'infinity'),
    'whole numbers in safetensors': (
        lambda root: tensors(root, prompt=VALUES.astype(np.int8)), 'int8'),
}


@pytest.mark.parametrize('case', BAD)
@pytest.mark.filterwarnings('ignore:.*:DeprecationWarning')
def test_what_is_no_prompt_is_one_clear_error(tmp_path, case):
  make, match = BAD[case]
  path = make(tmp_path)
  with pytest.raises(ValueError, match=match) as caught:
    prompt_files.read(path)
  assert str(tmp_path) in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1


def check(path, parameters=None, **options):
  prompt_files.require_same_base(
      MODEL if parameters is None else parameters, '/other/checkpoint_9',
      path=str(path), **options)


@pytest.mark.parametrize('kind', FORMATS)
def test_the_model_that_a_prompt_was_trained_on_passes(tmp_path, kind):
  check(FORMATS[kind](tmp_path))


@pytest.mark.parametrize('kind', FORMATS)
def test_another_model_is_refused_where_the_prompt_knows_its_own(
    tmp_path, kind, caplog):
  path = FORMATS[kind](tmp_path)
  other = {name: 2 * x for name, x in MODEL.items()}
  if 'artifact' not in kind:
    check(path, other)
    return
  with pytest.raises(ValueError, match=(
      r'was trained on the model /models/checkpoint_5 .*8x6.*but this run has '
      r'/other/checkpoint_9 .*enforce=False')) as caught:
    check(path, other)
  assert len(str(caught.value).splitlines()) == 1
  check(path, other, enforce=False)
  (record,) = caplog.records
  assert record.levelno == logging.WARNING
  assert re.search('/models/checkpoint_5.*/other/checkpoint_9', caplog.text)


def test_another_vocabulary_is_refused(tmp_path):
  bytes_, longer = (types.SimpleNamespace(vocab_size=size, eos_id=1)
                    for size in (259, 384))
  path = tmp_path / 'b.artifact'
  prompt_artifacts.write(path, VALUES, prompt_artifacts.Record(
      shape=(8, 6), sha256=RECORD.sha256,
      tokenizer=prompt_artifacts.tokenizer_of(bytes_)))
  check(path, vocabulary=bytes_)
  with pytest.raises(ValueError, match='of 259 .*but this run has .* of 384'):
    check(path, vocabulary=longer)


def norms(prompt):
  rows = np.linalg.norm(prompt.astype(np.float64), axis=1)
  return [rows.mean(), rows.min(), rows.max()]


# The figures of the table beside the published prompts.
@pytest.mark.parametrize('task,expected', [
    ('sst2', [1384.9, 343.6, 2177.2]), ('rte', [903.3, 234.9, 2003.6])])
def test_published_prompts_become_artifacts(
    shared_data, tmp_path, task, expected):
  source = shared_data / 'pretrained_prompts' / f'{task}.npy'
  assert convert_prompt.main([
      f'--input={source}', f'--output={tmp_path / task}',
      '--format=artifact']) == 0
  for path in (source, pathlib.Path(tmp_path / task)):
    prompt = prompt_files.read(path)
    assert (prompt.shape, prompt.dtype) == ((100, 768), np.float32)
    np.testing.assert_allclose(norms(prompt), expected, atol=0.1)
