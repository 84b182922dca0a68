"""The tool that converts whole models, called as its command line calls it."""

import json
import tracemalloc

import jax.numpy as jnp
import numpy as np
from prompt_tuning.scripts import convert_checkpoint
import pytest
from safetensors import numpy as safetensors_numpy
from t5x import checkpoints
from t5x import hugging_face_config
from t5x import lazy_arrays

WI = 'encoder.block.1.layer.1.DenseReluDense.wi_0.weight'


def convert(source, to, output, *more):
  return convert_checkpoint.main([
      f'--checkpoint={source}', f'--to={to}', f'--output_dir={output}', *more])


def test_there_and_back(theirs, tmp_path, capsys):
  tensors = theirs.write(tmp_path / 'a', dtype=np.dtype(jnp.bfloat16))
  assert convert(tmp_path / 'a', 't5x', tmp_path) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(tensors) + 1
  assert 'encoder/layers_1/mlp/wi_0/kernel [8, 16] bfloat16' in lines
  assert convert(tmp_path / 'checkpoint_0', 'hugging_face', tmp_path / 'b') == 0
  lines = capsys.readouterr().out.splitlines()
  assert (f'encoder/layers_1/mlp/wi_0/kernel -> {WI} [8, 16] bfloat16'
          in lines)
  assert lines[-1].endswith(f'{len(tensors)} parameters of '
                            f'{tmp_path}/checkpoint_0')
  found = safetensors_numpy.load_file(tmp_path / 'b' / 'model.safetensors')
  assert set(found) == set(tensors)
  for name, x in tensors.items():
    assert found[name].dtype == x.dtype and found[name].shape == x.shape
    assert found[name].tobytes() == x.tobytes()


def test_dtype_and_shards_are_as_asked(theirs, tmp_path):
  tensors = theirs.write(tmp_path / 'a')
  assert convert(tmp_path / 'a', 'hugging_face', tmp_path / 'b',
                 '--dtype=bfloat16', '--shard_bytes=2000') == 0
  files = list((tmp_path / 'b').glob('model-*.safetensors'))
  assert len(files) > 2 and (
      tmp_path / 'b' / 'model.safetensors.index.json').exists()
  found = {}
  for file in files:
    found |= safetensors_numpy.load_file(file)
  np.testing.assert_array_equal(found[WI], tensors[WI].astype(jnp.bfloat16))


SAID = {'feed_forward_proj': 'gated-silu',
        'relative_attention_max_distance': 64}


def said(folder):
  return {key: value for key, value in json.loads(
      (folder / 'config.json').read_text()).items()
          if key in SAID or key == 'model_type'}


@pytest.mark.parametrize('kind', ['t5', 'mt5'])
def test_a_folder_of_theirs_stays_the_model_that_it_says_it_is(
    theirs, tmp_path, capsys, kind):
  changes = SAID | {'model_type': kind}
  theirs.write(tmp_path / 'a', changes)
  assert convert(tmp_path / 'a', 'hugging_face', tmp_path / 'b') == 0
  assert said(tmp_path / 'b') == changes
  assert hugging_face_config.read(tmp_path / 'b') == hugging_face_config.read(
      tmp_path / 'a')
  assert 'assumed' not in capsys.readouterr().out
  assert convert(tmp_path / 'a', 'hugging_face', tmp_path / 'c',
                 '--feed_forward_proj=gated-gelu') == 2
  assert 'Leave it out' in capsys.readouterr().err
  assert not (tmp_path / 'c').exists()


def test_what_shapes_do_not_tell_is_reported_and_can_be_set(
    theirs, tmp_path, capsys):
  theirs.write(tmp_path / 'a', SAID)
  assert convert(tmp_path / 'a', 't5x', tmp_path) == 0
  assert 'assumed' not in capsys.readouterr().out
  native = tmp_path / 'checkpoint_0'
  assert convert(native, 'hugging_face', tmp_path / 'b') == 0
  out = capsys.readouterr().out
  assert 'assumed: feed_forward_proj gated-gelu' in out
  assert 'assumed: relative_attention_max_distance 128' in out
  assert said(tmp_path / 'b')['feed_forward_proj'] == 'gated-gelu'
  assert convert(native, 'hugging_face', tmp_path / 'c', *(
      f'--{key}={value}' for key, value in SAID.items())) == 0
  assert 'assumed' not in capsys.readouterr().out
  assert said(tmp_path / 'c') == SAID | {'model_type': 't5'}


@pytest.mark.parametrize('flag,says', [
    ('--feed_forward_proj=relu', 'mlp/wi'),
    ('--relative_attention_max_distance=0', "max_distance '0'")])
def test_what_cannot_be_is_not_written(theirs, tmp_path, capsys, flag, says):
  theirs.write(tmp_path / 'a')
  assert convert(tmp_path / 'a', 't5x', tmp_path) == 0
  assert convert(tmp_path / 'checkpoint_0', 'hugging_face', tmp_path / 'b',
                 flag) == 2
  assert says in capsys.readouterr().err
  assert not (tmp_path / 'b').exists()


@pytest.mark.parametrize('to,there', [
    ('hugging_face', 'out'), ('t5x', 'out/checkpoint_0')])
def test_nothing_is_overwritten(theirs, tmp_path, capsys, to, there):
  theirs.write(tmp_path / 'a')
  (tmp_path / there).mkdir(parents=True)
  assert convert(tmp_path / 'a', to, tmp_path / 'out') == 2
  assert 'there already' in capsys.readouterr().err
  assert not list((tmp_path / there).iterdir())


CHANGES = {
    'missing': (lambda a: a.pop('target/decoder/decoder_norm/scale'),
                'no parameter decoder/decoder_norm/scale'),
    'extra': (lambda a: a.update({
        'target/encoder/more': lazy_arrays.of_array('x', np.zeros(2))}),
        'a parameter encoder/more'),
    'misshapen': (lambda a: a.update({
        'target/decoder/layers_0/mlp/wo/kernel': lazy_arrays.of_array(
            'x', np.zeros((8, 16)))}), 'mlp/wo/kernel is [8, 16]')}


@pytest.mark.parametrize('case', CHANGES)
def test_what_is_no_t5_is_refused(theirs, tmp_path, capsys, case):
  change, says = CHANGES[case]
  theirs.write(tmp_path / 'a')
  arrays = checkpoints.open_checkpoint(str(tmp_path / 'a'))
  change(arrays)
  native = checkpoints.save_t5x_checkpoint(str(tmp_path), arrays)
  assert convert(native, 'hugging_face', tmp_path / 'b') == 2
  assert says in capsys.readouterr().err
  assert not (tmp_path / 'b').exists()


def test_a_folder_that_lacks_a_tensor_is_refused(theirs, tmp_path, capsys):
  tensors = theirs.tensors(theirs.CONFIG)
  del tensors[WI]
  theirs.write(tmp_path / 'a', tensors=tensors)
  assert convert(tmp_path / 'a', 't5x', tmp_path) == 2
  assert f'no tensor {WI}' in capsys.readouterr().err
  assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_only_one_tensor_is_in_memory(theirs, tmp_path):
  changes = {'vocab_size': 4096, 'd_model': 512, 'd_ff': 1024}
  theirs.write(tmp_path / 'a', changes)
  tracemalloc.start()
  assert convert(tmp_path / 'a', 'hugging_face', tmp_path / 'b') == 0
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  table, whole = 4 * 4096 * 512, sum(
      p.stat().st_size for p in (tmp_path / 'a').iterdir())
  assert whole > 3.5 * table
  assert peak < 1.5 * table
