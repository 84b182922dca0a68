import json
import logging
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
from prompt_tuning.interop import peft
import pytest
import safetensors.numpy
from t5x import whole_writes

VALUES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)

# What PeftModel.save_pretrained of peft 0.21.2 writes for a T5.
CONFIG = {
    'auto_mapping': None, 'base_model_name_or_path': 'google/t5-v1_1-base',
    'inference_mode': True, 'modules_to_save': None, 'num_attention_heads': 4,
    'num_layers': 2, 'num_transformer_submodules': 1, 'num_virtual_tokens': 4,
    'peft_type': 'PROMPT_TUNING', 'peft_version': '0.21.2',
    'prompt_tuning_init': 'RANDOM', 'prompt_tuning_init_text': None,
    'revision': None, 'task_type': 'SEQ_2_SEQ_LM', 'token_dim': 6,
    'tokenizer_kwargs': None, 'tokenizer_name_or_path': None}


def adapter(folder, tensors=None, **changes):
  """A folder as PEFT leaves it; a change to 'gone' leaves a key out."""
  folder.mkdir(exist_ok=True)
  config = {k: v for k, v in (CONFIG | changes).items() if v != 'gone'}
  (folder / 'adapter_config.json').write_text(json.dumps(config, indent=2))
  if tensors is None:
    tensors = {'prompt_embeddings': VALUES}
  safetensors.numpy.save_file(
      tensors, folder / 'adapter_model.safetensors', {'format': 'pt'})
  (folder / 'README.md').write_text('# Model Card')
  return folder


@pytest.mark.parametrize('kind', ['PROMPT_TUNING', 'P_TUNING'])
@pytest.mark.parametrize('task', ['SEQ_2_SEQ_LM', 'CAUSAL_LM'])
def test_one_submodule_is_the_whole_table(tmp_path, kind, task):
  found = peft.read(adapter(
      tmp_path / 'a', peft_type=kind, task_type=task, some_new_key=3))
  np.testing.assert_array_equal(found.prompt, VALUES, strict=True)
  assert (found.peft_type, found.task_type, found.unused_rows) == (
      kind, task, 0)
  assert found.base_model == 'google/t5-v1_1-base'


def test_of_two_submodules_the_first_half_is_the_prompt(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  table = np.concatenate([VALUES, np.zeros_like(VALUES)])
  found = peft.read(adapter(
      tmp_path / 'a', {'prompt_embeddings': table},
      num_transformer_submodules=2))
  np.testing.assert_array_equal(found.prompt, VALUES, strict=True)
  assert found.unused_rows == 4
  assert 'first 4 of 8 rows' in caplog.text


@pytest.mark.parametrize('dtype', [np.float16, np.float32, jnp.bfloat16])
def test_prompts_of_other_widths_of_numbers(tmp_path, dtype):
  found = peft.read(adapter(
      tmp_path / 'a', {'prompt_embeddings': VALUES.astype(dtype)}))
  np.testing.assert_array_equal(
      found.prompt, VALUES.astype(dtype), strict=True)


def _only_pickled(folder):
  (folder / 'adapter_model.safetensors').rename(folder / 'adapter_model.bin')


def _linked(folder, name):
  shutil.move(folder / name, folder.parent / 'elsewhere')
  (folder / name).symlink_to(folder.parent / 'elsewhere')


def _changed(name, value):
  return lambda f: adapter(f, **{name: value})


def _tensors(**tensors):
  return lambda f: adapter(f, tensors)


def _text(content):
  return lambda f: (f / 'adapter_config.json').write_text(content)


BAD = {
    # What peft.md lists, in its order, with what PEFT itself does.
    'rows other than the config says': (
        _changed('num_virtual_tokens', 6), r'\[4, 6\].*says 1 x 6 vectors'),
    'no weights': (
        lambda f: (f / 'adapter_model.safetensors').unlink(),
        'no adapter_model.safetensors. Copy both'),
    'no config': (lambda f: (f / 'adapter_config.json').unlink(),
                  'has no adapter_config.json'),
    'another name of the tensor': (
        _tensors(prompt=VALUES), "holds .'prompt'.*'prompt_embeddings'"),
    'a truncated file': (
        lambda f: (f / 'adapter_model.safetensors').write_bytes(b'\x40' * 9),
        'adapter_model.safetensors'),
    'broken JSON': (_text('{"peft_type": '), 'adapter_config.json is no JSON'),
    'an unknown type': (_changed('peft_type', 'NOPE'), "peft_type is 'NOPE'"),
    'no type': (_changed('peft_type', 'gone'), "peft_type is 'None'"),
    'no length': (_changed('num_virtual_tokens', 'gone'),
                  "num_virtual_tokens is 'None'"),
    'no vectors': (_changed('num_virtual_tokens', 0),
                   "num_virtual_tokens is '0'"),
    'a negative length': (_changed('num_virtual_tokens', -1), "is '-1'"),
    'a true length': (_changed('num_virtual_tokens', True), "is 'True'"),
    'a length that is no whole number': (
        _changed('num_virtual_tokens', 4.0), "is '4.0'"),
    'no task type': (_changed('task_type', None), "task_type is 'None'"),
    'a task type of classifiers': (
        _changed('task_type', 'SEQ_CLS'), "task_type is 'SEQ_CLS'"),
    'another width': (_changed('token_dim', 8), r'\[4, 6\].*width 8'),
    'no width': (_changed('token_dim', None), "token_dim is 'None'"),
    'three submodules': (_changed('num_transformer_submodules', 3),
                         'num_transformer_submodules is 3'),
    'no submodules': (_changed('num_transformer_submodules', None),
                      "num_transformer_submodules is 'None'"),
    'a fraction of submodules': (
        _changed('num_transformer_submodules', 1.0), "is '1.0'"),
    # Other kinds of adapters.
    'a prefix': (_changed('peft_type', 'PREFIX_TUNING'),
                 'keys and values of every layer'),
    'many tasks': (_changed('peft_type', 'MULTITASK_PROMPT_TUNING'),
                   'matrix per task'),
    'CPT': (_changed('peft_type', 'CPT'), 'given tokens'),
    'a cartridge': (_changed('peft_type', 'CARTRIDGE'), 'every layer'),
    'LoRA': (_changed('peft_type', 'LORA'), "peft_type is 'LORA'"),
    'a list as type': (_changed('peft_type', ['PROMPT_TUNING']), 'peft_type'),
    'a list as task type': (_changed('task_type', ['CAUSAL_LM']), 'task_type'),
    # What must not be trusted.
    'pickled only': (_only_pickled, r'adapter_model.bin.*save_pretrained'),
    'auto_map': (_changed('auto_map', {'AutoModel': 'code.Class'}),
                 'names code'),
    'auto_mapping': (_changed('auto_mapping', {
        'base_model_class': 'T5', 'parent_library': 'evil'}), 'names code'),
    'remote code': (_changed('tokenizer_kwargs', {'trust_remote_code': True}),
                    'names code'),
    'more that was trained': (
        _changed('modules_to_save', ['classifier']), 'modules_to_save'),
    'an extra tensor': (
        _tensors(prompt_embeddings=VALUES, classifier=VALUES),
        'expected one tensor'),
    'no tensor': (_tensors(), 'adapter_model.safetensors'),
    'not a number': (_tensors(prompt_embeddings=VALUES * np.nan), 'NaN'),
    'whole numbers': (
        _tensors(prompt_embeddings=VALUES.astype(np.int32)), 'int32'),
    'three axes': (_tensors(prompt_embeddings=VALUES[None]), r'\[1, 4, 6\]'),
    'a list as config': (_text('[]'), 'JSON list'),
    'a key twice': (_text('{"peft_type": "LORA", "peft_type": "CPT"}'),
                    'twice'),
    'deep nesting': (_text('[' * 100_000), 'no JSON'),
    'a link as config': (lambda f: _linked(f, 'adapter_config.json'),
                         'symlink'),
    'a link as tensor': (lambda f: _linked(f, 'adapter_model.safetensors'),
                         'symlink'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_clear_error_that_names_the_folder(tmp_path, case):
  spoil, match = BAD[case]
  folder = adapter(tmp_path / 'a')
  spoil(folder)
  with pytest.raises(peft.AdapterError, match=match) as caught:
    peft.read(folder)
  assert str(folder) in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(peft.AdapterError, match='/none has no adapter_config'):
    peft.read(tmp_path / 'none')


def test_a_flipped_bit_of_the_config_never_surprises(tmp_path):
  folder = adapter(tmp_path / 'a')
  file = folder / 'adapter_config.json'
  good = file.read_bytes()
  for place in range(0, 8 * len(good), 7):
    damaged = bytearray(good)
    damaged[place // 8] ^= 1 << place % 8
    file.write_bytes(damaged)
    try:
      found = peft.read(folder)
    except peft.AdapterError:
      continue
    np.testing.assert_array_equal(found.prompt, VALUES, strict=True)


@pytest.mark.parametrize('prompt', [
    VALUES, np.asfortranarray(VALUES), VALUES.astype(np.float64),
    VALUES.astype(jnp.bfloat16)],
    ids=['float32', 'fortran', 'float64', 'bfloat16'])
def test_what_is_written_is_read(tmp_path, prompt):
  folder = tmp_path / 'new' / 'adapter'
  peft.write(folder, prompt, base_model='google/t5-v1_1-base',
             task_type='CAUSAL_LM')
  found = peft.read(folder)
  np.testing.assert_array_equal(
      found.prompt, prompt.astype(np.float32), strict=True)
  assert found.base_model == 'google/t5-v1_1-base'
  assert (found.task_type, found.unused_rows) == ('CAUSAL_LM', 0)
  assert sorted(p.name for p in folder.iterdir()) == [
      'adapter_config.json', 'adapter_model.safetensors']


def test_every_key_that_is_written_is_one_of_pefts(tmp_path):
  peft.write(tmp_path / 'a', VALUES)
  config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
  assert config.items() <= (
      CONFIG | {'base_model_name_or_path': None}).items()


@pytest.mark.parametrize('prompt,task,match', [
    (VALUES, 'SEQ_CLS', 'task_type'), (VALUES[0], 'CAUSAL_LM', 'no matrix'),
    (VALUES[:0], 'CAUSAL_LM', 'no matrix'),
    (VALUES * np.nan, 'CAUSAL_LM', 'no matrix')])
def test_what_peft_could_not_use_is_not_written(tmp_path, prompt, task, match):
  with pytest.raises(peft.AdapterError, match=match):
    peft.write(tmp_path / 'a', prompt, task_type=task)
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
  peft.write(tmp_path / 'a', VALUES)
  before = {p: p.read_bytes() for p in (tmp_path / 'a').iterdir()}
  with pytest.raises(whole_writes.ExistsError, match='already'):
    peft.write(tmp_path / 'a', 2 * VALUES)
  assert before == {p: p.read_bytes() for p in (tmp_path / 'a').iterdir()}


def test_a_write_that_fails_leaves_no_trace(tmp_path, file_size_limit):
  with file_size_limit(200), pytest.raises(OSError, match='too large'):
    peft.write(tmp_path / 'a', np.ones((40, 6), np.float32))
  assert not list(tmp_path.iterdir())


def test_a_snapshot_of_the_hubs_cache_is_read(tmp_path):
  repository = tmp_path / 'models--me--prompt'
  folder = repository / 'snapshots' / 'abc'
  folder.parent.mkdir(parents=True)
  adapter(folder)
  (repository / 'blobs').mkdir()
  for file in list(folder.iterdir()):
    blob = repository / 'blobs' / file.name
    shutil.move(file, blob)
    file.symlink_to(pathlib.Path('../../blobs') / file.name)
  np.testing.assert_array_equal(peft.read(folder).prompt, VALUES)
