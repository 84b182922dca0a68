import collections
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from prompt_tuning import prompt_artifacts
import pytest
import safetensors.numpy
from t5x import fingerprint
from t5x import lazy_arrays
from t5x import whole_writes

VALUES = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
MODEL = {'token_embedder/embedding': jnp.asarray(VALUES),
         'encoder/norm/scale': jnp.ones(6)}
BASE = prompt_artifacts.base_of(MODEL, '/models/checkpoint_5', 5)
RECORD = prompt_artifacts.Record(
    shape=(8, 6), sha256=prompt_artifacts.sha256(VALUES),
    parameter='encoder/prompt/prompt/prompt', task='rte',
    metrics={'rte/accuracy': 62.5}, seed=3, first_step=5, step=7,
    batch_size=16, recipe="TASK = 'rte'\n",
    parent=prompt_artifacts.Parent('/x/parent.npy', 'a' * 64, 'mnli'),
    base=BASE, tokenizer=prompt_artifacts.Tokenizer('Pieces', 32, 'b' * 64))


@pytest.fixture
def folder(tmp_path):
  """An artifact."""
  path = tmp_path / 'prompt.artifact'
  prompt_artifacts.write(path, VALUES, RECORD)
  return path


def rewritten(folder, **changes):
  """An artifact with another prompt.json, whose sum is right."""
  file = folder / 'prompt.json'
  fields = json.loads(file.read_text())
  fields.pop('record_sha256')
  fields = {k: v for k, v in (fields | changes).items() if v != 'gone'}
  fields['record_sha256'] = hashlib.sha256(
      json.dumps(fields, sort_keys=True).encode()).hexdigest()
  file.write_text(json.dumps(fields))


def with_tensors(folder, **tensors):
  """An artifact with another prompt.safetensors."""
  safetensors.numpy.save_file(tensors, folder / 'prompt.safetensors')


@pytest.mark.parametrize('record', [
    RECORD, prompt_artifacts.Record(shape=(8, 6), sha256=RECORD.sha256)],
    ids=['everything', 'nothing else'])
@pytest.mark.parametrize('prompt', [
    VALUES, np.asfortranarray(VALUES), VALUES.T.copy().T,
    np.repeat(VALUES, 2, axis=0)[::2]],
    ids=['rows', 'fortran', 'transposed', 'strided'])
def test_what_is_written_is_read(tmp_path, prompt, record):
  path = tmp_path / 'new' / 'prompt.artifact'
  prompt_artifacts.write(path, prompt, record)
  found = prompt_artifacts.read(path)
  np.testing.assert_array_equal(found.prompt, VALUES, strict=True)
  assert found.record == record
  assert sorted(p.name for p in path.iterdir()) == [
      'README.md', 'prompt.json', 'prompt.safetensors']
  assert [p.name for p in path.parent.iterdir()] == ['prompt.artifact']


def test_other_programs_read_it(folder):
  (name, tensor), = safetensors.numpy.load_file(
      folder / 'prompt.safetensors').items()
  assert name == 'prompt'
  np.testing.assert_array_equal(tensor, VALUES, strict=True)
  fields = json.loads((folder / 'prompt.json').read_text())
  assert fields['format_version'] == 1
  assert fields['sha256'] == hashlib.sha256(VALUES.tobytes()).hexdigest()
  assert (fields['task'], fields['parent']['task']) == ('rte', 'mnli')
  assert sum(p.stat().st_size for p in folder.iterdir()) < 5000


def test_the_card_says_what_people_must_know(folder):
  text = (folder / 'README.md').read_text()
  for word in ('rte', '/models/checkpoint_5', BASE.fingerprint[:12], '62.5',
               '[8, 6]', '/x/parent.npy', "TASK = 'rte'", RECORD.sha256,
               'Pieces of 32'):
    assert word in text, word
  assert 'not recorded' not in text


def test_the_card_says_what_is_not_known(tmp_path):
  prompt_artifacts.write(tmp_path / 'a', VALUES, prompt_artifacts.Record(
      shape=(8, 6), sha256=RECORD.sha256))
  text = (tmp_path / 'a' / 'README.md').read_text()
  assert 'Which one it is was not recorded.' in text


def test_a_task_cannot_break_the_card_out_of_its_table(tmp_path):
  prompt_artifacts.write(tmp_path / 'a', VALUES, dataclasses.replace(
      RECORD, task='a | b\n# c'))
  card = (tmp_path / 'a' / 'README.md').read_text()
  assert '| task or mixture | a / b # c |' in card


def _flip(file, place):
  content = bytearray(file.read_bytes())
  content[place] ^= 1
  file.write_bytes(content)


def _cut(file, size):
  file.write_bytes(file.read_bytes()[:size])


def _linked(folder, name):
  outside = folder.parent / 'elsewhere'
  shutil.move(folder / name, outside)
  (folder / name).symlink_to(outside)


JSON, TENSORS = 'prompt.json', 'prompt.safetensors'
DAMAGE = {
    'no record': (lambda f: (f / JSON).unlink(), 'cannot be read'),
    'no tensor': (lambda f: (f / TENSORS).unlink(), TENSORS),
    'empty record': (lambda f: _cut(f / JSON, 0), 'no JSON'),
    'half a record': (lambda f: _cut(f / JSON, 300), 'no JSON'),
    'half a tensor': (lambda f: _cut(f / TENSORS, 180), TENSORS),
    'a byte less': (lambda f: _cut(f / TENSORS, -1), TENSORS),
    'a flipped bit of a value': (lambda f: _flip(f / TENSORS, -3), 'SHA-256'),
    'a list': (lambda f: (f / JSON).write_text('[]'), 'JSON list'),
    'a key twice': (lambda f: (f / JSON).write_text(
        (f / JSON).read_text().replace('{', '{"seed": 4,', 1)), 'twice'),
    'NaN in the record': (lambda f: (f / JSON).write_text(
        (f / JSON).read_text().replace('62.5', 'NaN')), 'NaN'),
    'a changed word': (lambda f: (f / JSON).write_text(
        (f / JSON).read_text().replace('mnli', 'snli')), 'has been changed'),
    'no sum': (lambda f: (f / JSON).write_text(
        (f / JSON).read_text().replace('record_sha256', 'other')),
               'has been changed'),
    'a newer version': (lambda f: rewritten(f, format_version=2),
                        "version '2', this library reads 1"),
    'no version': (lambda f: rewritten(f, format_version='gone'), 'version'),
    'true as version': (lambda f: rewritten(f, format_version=True),
                        "version 'True'"),
    'an extra key': (lambda f: rewritten(f, auto_map='code.Class'),
                     'other keys.*auto_map'),
    'an extra key below': (lambda f: rewritten(f, parent={
        'file': 'a', 'sha256': 'b', 'task': None, 'x': 1}), 'other keys.*x'),
    'a missing key': (lambda f: rewritten(f, seed='gone'), 'other keys.*seed'),
    'a record of no object': (lambda f: rewritten(f, base=[1]), 'base'),
    'a huge shape': (lambda f: rewritten(f, shape=[10**9, 10**9]),
                     r'says float32\[1000000000, 1000000000\]'),
    'a negative shape': (lambda f: rewritten(f, shape=[-8, -6]), 'shape is'),
    'three axes': (lambda f: rewritten(f, shape=[8, 6, 1]), 'shape is'),
    'a shape of truth values': (lambda f: rewritten(f, shape=[True, 6]),
                                'shape is'),
    'another shape': (lambda f: rewritten(f, shape=[6, 8]), r'\[6, 8\]'),
    'another sum': (lambda f: rewritten(f, sha256='0' * 64), 'SHA-256'),
    'a number as sum': (lambda f: rewritten(f, sha256=1), 'sha256 is'),
    'a text as step': (lambda f: rewritten(f, step='7'), "step is '7'"),
    'a negative seed': (lambda f: rewritten(f, seed=-1), 'seed is'),
    'a text as metric': (lambda f: rewritten(f, metrics={'a': 'b'}),
                         'metrics is'),
    'a huge metric': (lambda f: rewritten(f, metrics={'a': 10**400}),
                      'metrics is'),
    'a huge step': (lambda f: rewritten(f, step=10**400), 'step is'),
    'a huge table': (lambda f: rewritten(f, tokenizer={
        'kind': 'a', 'size': 2**63, 'fingerprint': 'b'}), 'size is'),
    'a novel as path': (lambda f: rewritten(f, base=dataclasses.asdict(
        dataclasses.replace(BASE, path='x' * 500_000))), 'path is'),
    'a library as recipe': (lambda f: rewritten(f, recipe='x' * 2**21),
                            'recipe is'),
    'a key that clears the screen': (lambda f: rewritten(
        f, **{'\x1b[2J' + 'x' * 5000: 1}), r'other keys.*\?\[2J'),
    'another name': (lambda f: with_tensors(f, prompts=VALUES),
                     'expected one tensor'),
    'an extra tensor': (lambda f: with_tensors(
        f, prompt=VALUES, more=VALUES), 'expected one tensor'),
    'another dtype': (lambda f: with_tensors(
        f, prompt=VALUES.astype(np.float64)), 'float64'),
    'whole numbers': (lambda f: with_tensors(
        f, prompt=VALUES.astype(np.int32)), 'int32'),
    'another prompt': (lambda f: with_tensors(f, prompt=2 * VALUES), 'SHA-256'),
    'not a number': (lambda f: with_tensors(f, prompt=VALUES * np.nan), 'NaN'),
    'a pickle': (lambda f: (f / TENSORS).write_bytes(
        b'cos\nsystem\n(S"touch x"\ntR.'), TENSORS),
    'a link of the record': (lambda f: _linked(f, JSON), 'symlink'),
    'a link of the tensor': (lambda f: _linked(f, TENSORS), 'symlink'),
    'a dead link': (lambda f: ((f / JSON).unlink(), (f / JSON).symlink_to(
        '/nowhere/prompt.json')), 'symlink'),
    'a folder as record': (lambda f: ((f / JSON).unlink(),
                                      (f / JSON).mkdir()), 'cannot be read'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damage_is_one_clear_error_that_names_the_folder(folder, damage):
  spoil, match = DAMAGE[damage]
  spoil(folder)
  with pytest.raises(
      prompt_artifacts.ArtifactError, match=match) as caught:
    prompt_artifacts.read(folder)
  assert str(folder) in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1
  assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_what_a_message_says_of_a_file_is_short_and_moves_no_cursor():
  hostile = '\x1b[2J\n\r\u202e\x9b' + 'x' * 4000
  for found in (
      dataclasses.replace(BASE, path=hostile),
      dataclasses.replace(BASE, fingerprint=hostile),
      prompt_artifacts.Tokenizer(hostile, 32, hostile)):
    assert str(found).isprintable() and '?[2J????' in str(found)
    assert len(str(found)) < 600


def test_a_flipped_bit_is_never_read(folder):
  for name in (JSON, TENSORS):
    file = folder / name
    good = file.read_bytes()
    for place in range(0, 8 * len(good), 29):  # 13,000 bits take long.
      damaged = bytearray(good)
      damaged[place // 8] ^= 1 << place % 8
      file.write_bytes(damaged)
      try:
        found = prompt_artifacts.read(folder)
      except prompt_artifacts.ArtifactError:
        continue
      # A space for a newline, or a name that is not read.
      assert found.record == RECORD
      np.testing.assert_array_equal(found.prompt, VALUES, strict=True)
    file.write_bytes(good)


def test_nothing_is_overwritten(folder):
  before = {p: p.read_bytes() for p in folder.iterdir()}
  with pytest.raises(whole_writes.ExistsError, match='already'):
    prompt_artifacts.write(folder, 2 * VALUES, RECORD)
  assert before == {p: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize('prompt', [2 * VALUES, VALUES[:4], VALUES * np.inf],
                         ids=['other values', 'another shape', 'infinite'])
def test_a_record_of_another_prompt_is_not_written(tmp_path, prompt):
  with pytest.raises(ValueError):
    prompt_artifacts.write(tmp_path / 'a', prompt, RECORD)
  assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_no_trace(tmp_path, file_size_limit):
  with file_size_limit(1000), pytest.raises(OSError, match='too large'):
    prompt_artifacts.write(tmp_path / 'a', VALUES, dataclasses.replace(
        RECORD, recipe='x' * 2000))
  assert not list(tmp_path.iterdir())


def test_the_base_is_the_same_in_the_dtypes_that_runs_use():
  half = {path: x.astype(jnp.bfloat16) for path, x in MODEL.items()}
  assert prompt_artifacts.base_of(half) == prompt_artifacts.base_of(MODEL)
  assert prompt_artifacts.base_of(MODEL).fingerprint == (
      fingerprint.fingerprint(half))
  assert (BASE.parameters, BASE.embeddings) == (54, (8, 6))


def test_the_base_does_not_depend_on_the_sharding():
  mesh = jax.make_mesh((8,), ('model',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  cut = MODEL | {'token_embedder/embedding': jax.device_put(
      VALUES, jax.NamedSharding(mesh, jax.sharding.PartitionSpec('model')))}
  assert prompt_artifacts.base_of(cut) == prompt_artifacts.base_of(MODEL)


@pytest.mark.parametrize('path', [None, '/models/checkpoint_5'])
def test_nothing_is_no_base(path):
  with pytest.raises(prompt_artifacts.ArtifactError, match=(
      f'{path or "The model"} has no parameters besides prompts')):
    prompt_artifacts.base_of({}, path)


def scanned(parameters, axis):
  """The names and arrays of the same weights with scan_layers."""
  layers = collections.defaultdict(list)
  for path in sorted(parameters):
    layers[re.sub(r'(\w+)/layers_\d+/', r'\1/\1/', path)].append(
        parameters[path])
  return {path: jnp.stack(stack, axis) if len(stack) > 1 else stack[0]
          for path, stack in layers.items()}


def unread(parameters):
  return {path: lazy_arrays.of_array(path, x) for path, x in parameters.items()}


# Where all sizes are the same, the axis is taken to be T5X's.
@pytest.mark.parametrize('axis,mlp_dim', [(1, 16), (0, 16), (-1, 16), (1, 8)])
def test_the_base_does_not_depend_on_scanning(tiny, axis, mlp_dim):
  plain = tiny.values(tiny.infos(tiny.model(
      num_encoder_layers=3, num_decoder_layers=2, mlp_dim=mlp_dim)))
  stacked = scanned(plain, axis)
  assert 'encoder/encoder/mlp/wo/kernel' in stacked
  expected = prompt_artifacts.base_of(plain)
  assert expected.fingerprint == fingerprint.fingerprint(
      {path: x.astype(jnp.bfloat16) for path, x in plain.items()})
  for parameters in (stacked, unread(stacked), unread(plain)):
    assert prompt_artifacts.base_of(parameters) == expected
  stacked['encoder/encoder/mlp/wo/kernel'] = jnp.flip(
      stacked['encoder/encoder/mlp/wo/kernel'], axis)
  assert prompt_artifacts.base_of(stacked) != expected


def test_a_scanned_model_has_the_names_that_are_cut(tiny):
  infos = tiny.infos(tiny.model(scan_layers=True, num_encoder_layers=3))
  plain = tiny.infos(tiny.model(num_encoder_layers=3))
  values = tiny.values(infos)
  assert prompt_artifacts.base_of(values).fingerprint == (
      prompt_artifacts.base_of({
          path: values[path] if path in values else values[
              re.sub(r'(\w+)/layers_\d+/', r'\1/\1/', path)][
                  :, int(re.findall(r'layers_(\d+)', path)[0])]
          for path in plain}).fingerprint)


class Vocabulary:
  """As SeqIO's, of bytes or of pieces."""

  def __init__(self, vocab_size=32, eos_id=1, sp_model=None):
    self.vocab_size, self.eos_id = vocab_size, eos_id
    if sp_model is not None:
      self.sp_model = sp_model


@pytest.mark.parametrize('other,same', [
    (Vocabulary(), True), (Vocabulary(33), False), (Vocabulary(32, 2), False),
    (Vocabulary(sp_model=b'a'), False)])
def test_vocabularies_are_told_apart_by_content(other, same):
  found = prompt_artifacts.tokenizer_of(other)
  assert (found == prompt_artifacts.tokenizer_of(Vocabulary())) == same


def test_a_vocabulary_of_pieces_is_its_pieces(tmp_path):
  from prompt_tuning.demo import tasks
  import seqio
  shutil.copy(tasks.VOCABULARY_FILE, tmp_path / 'moved.model')
  here, moved, longer = (
      prompt_artifacts.tokenizer_of(seqio.SentencePieceVocabulary(
          str(file), extra_ids=extra))
      for file, extra in ((tasks.VOCABULARY_FILE, 100),
                          (tmp_path / 'moved.model', 100),
                          (tasks.VOCABULARY_FILE, 0)))
  assert here == moved != longer
  assert here.size == longer.size + 100


@pytest.mark.parametrize('changed,found', [
    ({}, []),
    ({'encoder/norm/scale': 2 * jnp.ones(6)},
     ['/models/checkpoint_5.*but this run has /other']),
    ({'token_embedder/embedding': jnp.ones((9, 6))},
     [r'embeddings 8x6.*but this run has /other .*embeddings 9x6'])])
def test_another_model_is_told_with_both_names(changed, found):
  differences = prompt_artifacts.differences(
      RECORD, MODEL | changed, '/other')
  assert len(differences) == len(found)
  for difference, pattern in zip(differences, found, strict=True):
    assert re.search(pattern, difference)


def test_another_vocabulary_is_told_with_both_names():
  (difference,) = prompt_artifacts.differences(
      RECORD, MODEL, None, Vocabulary(384))
  assert re.search('Pieces of 32 .*Vocabulary of 384', difference)


def test_what_a_prompt_does_not_know_is_not_compared():
  unknown = prompt_artifacts.Record(shape=(8, 6), sha256=RECORD.sha256)
  assert not prompt_artifacts.differences(unknown, MODEL, None, Vocabulary())


def test_files_beside_do_not_matter(folder):
  (folder / 'notes.txt').write_text('mine')
  (folder / 'README.md').unlink()
  assert prompt_artifacts.read(pathlib.Path(folder)).record == RECORD


def test_no_tensor_is_read_before_the_record_is_believed(folder):
  rewritten(folder, format_version=3)
  (folder / TENSORS).unlink()
  with pytest.raises(prompt_artifacts.ArtifactError, match='version'):
    prompt_artifacts.read(folder)
