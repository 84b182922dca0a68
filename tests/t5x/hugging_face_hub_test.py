"""Names of the hub, on a cache that is laid out as huggingface_hub's."""

import sys

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2
import seqio
from t5x import checkpoints
from t5x import datasets
from t5x import hugging_face
from t5x import hugging_face_hub
from t5x import vocabularies

COMMIT = 'c0ffee' * 6 + 'c0ff'


@pytest.fixture
def cached(hub, theirs, tmp_path):
  """A model in the cache: its snapshot, and its tensors."""
  tensors = theirs.write(tmp_path / 'made')
  return hub('owner/a-model', tmp_path / 'made'), tensors


@pytest.mark.parametrize('name', [
    'hf:owner/a-model', 'hf:owner/a-model@main',
    f'hf:owner/a-model@{COMMIT}'])
def test_a_model_of_the_cache_is_a_checkpoint(cached, name):
  snapshot, tensors = cached
  found = checkpoints.find_checkpoint(name)
  assert found == str(snapshot)
  table = checkpoints.open_checkpoint(found)['target/token_embedder/embedding']
  np.testing.assert_array_equal(table.get(), tensors['shared.weight'])
  assert hugging_face.t5_config(name, dtype='bfloat16').emb_dim == 8


def test_a_link_out_of_the_cache_is_not_followed(cached, tmp_path):
  snapshot, _ = cached
  (tmp_path / 'secret').write_text('{}')
  (snapshot / 'config.json').unlink()
  (snapshot / 'config.json').symlink_to(tmp_path / 'secret')
  with pytest.raises(checkpoints.CheckpointError, match='not followed'):
    checkpoints.open_checkpoint(
        checkpoints.find_checkpoint('hf:owner/a-model'))


def test_a_repository_of_pickles_is_named(cached):
  snapshot, _ = cached
  (snapshot / 'model.safetensors').unlink()
  with pytest.raises(checkpoints.CheckpointError,
                     match=r"from_pretrained\('owner/a-model'\)"):
    checkpoints.open_checkpoint(
        checkpoints.find_checkpoint('hf:owner/a-model'))


@pytest.mark.parametrize('name', [
    'hf:', 'hf:model', 'hf:a/b/c', 'hf:../../etc', 'hf:a/..', 'hf:a/b@',
    'hf:a/b@../../x', 'hf:a/b@x/../../y', 'hf:a b/c', 'hf:/etc/passwd',
    'hf:a/b@-x'])
def test_what_is_no_name_is_refused(name):
  with pytest.raises(checkpoints.CheckpointError, match='hf:owner/name'):
    checkpoints.find_checkpoint(name)


@pytest.mark.parametrize('name', ['hf:owner/absent', 'hf:owner/a-model@other'])
def test_what_cannot_be_had_is_named(cached, name):
  with pytest.raises(checkpoints.CheckpointError,
                     match=f'{name} cannot be downloaded'):
    checkpoints.find_checkpoint(name)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  hugging_face_hub.download.cache_clear()
  with pytest.raises(checkpoints.CheckpointError, match=r'\[hub\]'):
    checkpoints.find_checkpoint('hf:owner/a-model')


def test_only_plain_data_is_downloaded():
  utils = pytest.importorskip('huggingface_hub.utils')
  there = ['config.json', 'spiece.model', 'model.safetensors.index.json',
           'model.safetensors', 'model-00001-of-00002.safetensors']
  others = ['pytorch_model.bin', 'model.bin', 'model.pt', 'modeling_t5.py',
            'tf_model.h5', 'flax_model.msgpack', 'training_args.bin',
            'onnx/model.safetensors', 'README.md', 'sub/config.json']
  patterns = [*hugging_face_hub.SMALL, hugging_face_hub.WEIGHTS]
  assert list(utils.filter_repo_objects(
      there + others, allow_patterns=patterns)) == there


PIECES = 800  # Of the demo's vocabulary.


@pytest.fixture
def spiece(theirs, tmp_path):
  """Writes a model's folder with the demo's vocabulary file."""
  from prompt_tuning.demo import tasks

  def write(**changes):
    theirs.write(tmp_path, changes)
    (tmp_path / 'spiece.model').write_bytes(tasks.VOCABULARY_FILE.read_bytes())
    return str(tmp_path)

  return write


@pytest.mark.parametrize('kind,extra', [('t5', 100), ('mt5', 0)])
def test_the_vocabulary_is_the_folders(spiece, kind, extra):
  from prompt_tuning.demo import tasks
  found = vocabularies.of_model(spiece(model_type=kind))
  expected = seqio.SentencePieceVocabulary(str(tasks.VOCABULARY_FILE), extra)
  text = 'the film was good'
  assert found.encode(text) == expected.encode(text)
  assert found.vocab_size == PIECES + extra == expected.vocab_size
  assert found.eos_id == 1
  assert vocabularies.of_model(spiece(), extra_ids=7).vocab_size == PIECES + 7


@pytest.mark.parametrize('sentinel', ['<extra_id_0>', '\u2581<extra_id_0>'])
def test_sentinels_that_are_pieces_are_not_added_again(
    spiece, tmp_path, sentinel):
  folder = spiece(model_type='t5')
  made = sentencepiece_model_pb2.ModelProto()
  made.ParseFromString((tmp_path / 'spiece.model').read_bytes())
  made.pieces.add(piece=sentinel, type=made.SentencePiece.USER_DEFINED)
  (tmp_path / 'spiece.model').write_bytes(made.SerializeToString())
  assert vocabularies.of_model(folder).vocab_size == PIECES + 1


@pytest.mark.parametrize('changes', [
    {'tokenizer_class': 'ByT5Tokenizer'}, {'vocab_size': 384}])
def test_byt5_has_bytes(theirs, tmp_path, changes):
  theirs.write(tmp_path, changes)
  assert vocabularies.of_model(str(tmp_path)) == seqio.ByteVocabulary()


def test_a_vocabulary_that_is_not_there_is_named(theirs, tmp_path):
  theirs.write(tmp_path)
  with pytest.raises(datasets.DatasetError, match=r'spiece\.model does not'):
    vocabularies.of_model(str(tmp_path))
  (tmp_path / 'spiece.model').symlink_to('/etc/passwd')
  with pytest.raises(datasets.DatasetError, match='not followed'):
    vocabularies.of_model(str(tmp_path))
