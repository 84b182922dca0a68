"""Hugging Face's folders: names, values, and logits equal to theirs."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import hugging_face
from t5x import hugging_face_config
from t5x import native_checkpoints
from t5x import train_state
from t5x import whole_writes
from t5x.examples.t5 import network

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'parity.npz'
TOKENS = (
    'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
VARIANTS = {'t5_1_1': {}, 't5_1_0': {'feed_forward_proj': 'relu',
                                     'tie_word_embeddings': True}}


def path_of(name):
  """Our parameter path of a documented name of theirs."""
  name = name.removesuffix('.weight')
  whole = {'shared': 'token_embedder/embedding',
           'lm_head': 'decoder/logits_dense/kernel'}
  if name in whole:
    return whole[name]
  stack, _, rest = name.partition('.')
  if rest == 'final_layer_norm':
    return f'{stack}/{stack}_norm/scale'
  if rest.endswith('relative_attention_bias'):
    return f'{stack}/relpos_bias/rel_embedding'
  _, layer, _, part, rest = rest.split('.', 4)
  last = {'encoder': '1', 'decoder': '2'}[stack]
  block = {'0': 'self_attention', '1': 'cross_attention'}[part] if (
      part != last) else 'mlp'
  ours = {('encoder', 'self_attention'): 'attention',
          ('decoder', 'cross_attention'): 'encoder_decoder_attention'}.get(
              (stack, block), block)
  place = f'{stack}/layers_{layer}'
  if rest == 'layer_norm':
    if stack == 'encoder' and block == 'self_attention':
      block = 'attention'
    return f'{place}/pre_{block}_layer_norm/scale'
  letter = rest.rpartition('.')[2]
  kernel = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}.get(
      letter, letter)
  return f'{place}/{ours}/{kernel}/kernel'


def ours_of(tensors):
  """Their tensors under our paths, in our layout."""
  return {path_of(name): x if name == 'shared.weight' else x.T
          for name, x in tensors.items()}


def read(folder):
  """The parameters of a folder, read."""
  return {name.removeprefix('target/'): array.get()
          for name, array in checkpoints.open_checkpoint(
              checkpoints.find_checkpoint(str(folder))).items()
          if name.startswith('target/')}


def assert_equal(found, expected):
  assert set(found) == set(expected)
  for name, x in expected.items():
    assert found[name].dtype == x.dtype
    np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.float16])
def test_every_tensor_has_its_parameter(
    theirs, tmp_path, variant, dtype, tiny):
  tensors = theirs.write(
      tmp_path, VARIANTS[variant], dtype=np.dtype(dtype))
  found = read(tmp_path)
  assert_equal(found, ours_of(tensors))
  model = tiny.model(
      num_decoder_layers=3, logits_via_embedding=variant == 't5_1_0',
      mlp_activations=('relu',) if variant == 't5_1_0' else ('gelu', 'linear'))
  assert {path: x.shape for path, x in found.items()} == {
      path: info.shape for path, info in tiny.infos(model).items()}
  checkpoint = checkpoints.Checkpoint(str(tmp_path))
  assert checkpoint.step == 0
  assert checkpoint_utils.detect_checkpoint_type(
      tmp_path) == checkpoint_utils.CheckpointTypes.HUGGING_FACE


def test_a_part_of_a_transposed_tensor_is_that_part(theirs, tmp_path):
  tensors = theirs.write(tmp_path)
  name = 'encoder.block.1.layer.1.DenseReluDense.wi_0.weight'
  array = checkpoints.open_checkpoint(str(tmp_path))[
      f'target/{path_of(name)}']
  np.testing.assert_array_equal(
      array.read_slice(np.s_[2:5, 7:9]), tensors[name].T[2:5, 7:9])


def network_of(config, arrays):
  """Our network on a checkpoint's parameters."""
  params = train_state.nested(
      {path: jnp.asarray(x, jnp.float32) for path, x in arrays.items()})
  module = network.Transformer(config)

  def compute(inputs, decoder_inputs, targets):
    variables = {'params': params}
    encoded = module.apply(
        variables, inputs, enable_dropout=False, method='encode')
    return encoded.x, module.apply(
        variables, inputs, decoder_inputs, targets, enable_dropout=False)

  return jax.jit(compute)


def assert_close(ours, theirs, valid):
  error = np.max(np.abs(np.asarray(ours)[valid] - theirs[valid])) / np.max(
      np.abs(theirs[valid]))
  assert error <= 1e-5, error


# What config.json says of the models in the golden file.
GOLDEN_SIZES = {
    'vocab_size': 64, 'd_model': 16, 'd_ff': 24, 'd_kv': 4, 'num_heads': 4,
    'num_layers': 2, 'num_decoder_layers': 2,
    'relative_attention_num_buckets': 8, 'relative_attention_max_distance': 20}
GOLDEN_MODELS = {
    't5_1_0': {'num_heads': 5, 'num_decoder_layers': 3, **VARIANTS['t5_1_0']},
    't5_1_1': {'num_heads': 3, 'num_decoder_layers': 3},
    'mt5': {'model_type': 'mt5'},
    'byt5': {'vocab_size': 384, 'num_layers': 3, 'num_decoder_layers': 1},
    'flan': {'relative_attention_num_buckets': 32,
             'relative_attention_max_distance': 128},
}


@pytest.mark.parametrize('variant', GOLDEN_MODELS)
def test_logits_of_a_folder_are_the_golden_ones(theirs, tmp_path, variant):
  with np.load(GOLDEN) as file:
    arrays = {key.removeprefix(f'{variant}/'): file[key] for key in file.files
              if key.startswith(f'{variant}/')}
  changes = GOLDEN_SIZES | GOLDEN_MODELS[variant]
  names = theirs.shapes(theirs.CONFIG | changes)
  params = {name: arrays[f'params/{path_of(name)}'] for name in names}
  theirs.write(tmp_path, changes, {
      name: np.ascontiguousarray(x if name == 'shared.weight' else x.T)
      for name, x in params.items()})
  run = network_of(hugging_face_config.read(tmp_path), read(tmp_path))
  tokens = [arrays[f'batch/padded/{name}'] for name in TOKENS]
  encoded, logits = run(*tokens)
  # The file has the states and logits of tokens only.
  everywhere = np.s_[:]
  assert_close(np.asarray(encoded)[tokens[0] > 0],
               arrays['plain/padded/encoded'], everywhere)
  assert_close(np.asarray(logits)[tokens[2] > 0],
               arrays['plain/padded/logits'], everywhere)


LIVE = {
    't5_1_0': ('T5', {'feed_forward_proj': 'relu',
                      'tie_word_embeddings': True}),
    't5_1_1': ('T5', {'feed_forward_proj': 'gated-gelu',
                      'tie_word_embeddings': False}),
    'mt5': ('MT5', {'feed_forward_proj': 'gated-gelu',
                    'tie_word_embeddings': False}),
    'gated-silu': ('T5', {'feed_forward_proj': 'gated-silu',
                          'tie_word_embeddings': False}),
}


def live_model(variant, own_head=True):
  """A random model of transformers."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  kind, options = LIVE[variant]
  config = getattr(transformers, f'{kind}Config')(
      vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2,
      num_decoder_layers=3, num_heads=3, decoder_start_token_id=0,
      attn_implementation='eager', **options)
  model = getattr(
      transformers, f'{kind}ForConditionalGeneration')(config).eval()
  if own_head and not options['tie_word_embeddings']:
    model.lm_head.weight = torch.nn.Parameter(torch.randn(64, 16))
  return model


def assert_same_outputs(folder, model):
  """The model's own states and logits, and ours of its folder."""
  import torch
  rng = np.random.default_rng(0)
  inputs, targets = rng.integers(2, 64, (4, 9)), rng.integers(2, 64, (4, 7))
  inputs[1:3, 5:] = 0
  with torch.no_grad():
    out = model.float()(
        input_ids=torch.tensor(inputs),
        attention_mask=torch.tensor(inputs > 0).long(),
        decoder_input_ids=torch.tensor(np.pad(targets, ((0, 0), (1, 0)))[
            :, :-1]))
  run = network_of(hugging_face_config.read(folder), read(folder))
  encoded, logits = run(*(jnp.asarray(x, jnp.int32) for x in (
      inputs, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets)))
  assert_close(encoded, out.encoder_last_hidden_state.numpy(), inputs > 0)
  assert_close(logits, out.logits.numpy(), targets > 0)


@pytest.mark.parametrize('variant', LIVE)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('largest', [None, '8KB'])
def test_logits_of_a_saved_model_are_its_own(
    tmp_path, variant, dtype, largest):
  model = live_model(variant)
  options = {} if largest is None else {'max_shard_size': largest}
  model.to(getattr(__import__('torch'), dtype)).save_pretrained(
      tmp_path, **options)
  assert (tmp_path / 'model.safetensors').exists() == (largest is None)
  assert_same_outputs(tmp_path, model)


def test_a_model_that_scores_with_its_table_without_scaling(tmp_path):
  model = live_model('t5_1_1', own_head=False)
  model.save_pretrained(tmp_path)
  assert 'lm_head.weight' not in safetensors_numpy.load_file(
      tmp_path / 'model.safetensors')
  assert_same_outputs(tmp_path, model)


@pytest.mark.parametrize('variant', ['t5_1_0', 't5_1_1'])
@pytest.mark.parametrize('largest', [2**40, 5000])
def test_transformers_loads_what_is_written(
    theirs, tmp_path, variant, largest):
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  tensors = theirs.write(tmp_path / 'a', VARIANTS[variant])
  write(tmp_path / 'a', tmp_path / 'b', largest)
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'b')
  state = model.state_dict()
  for name, x in tensors.items():
    assert torch.equal(state[name], torch.tensor(x)), name
  assert_scores = variant == 't5_1_0'
  assert model.config.scale_decoder_outputs == assert_scores
  assert (model.lm_head.weight is model.shared.weight) == assert_scores


def write(source, target, largest=hugging_face.LARGEST_SHARD):
  """Opens a checkpoint and writes it as Hugging Face does."""
  hugging_face.write(
      str(target), checkpoints.open_checkpoint(str(source)),
      largest_shard=largest)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
@pytest.mark.parametrize('largest', [2**40, 3000])
def test_there_and_back_is_equal_to_the_bit(
    theirs, tmp_path, variant, dtype, largest):
  tensors = theirs.write(
      tmp_path / 'a', VARIANTS[variant], dtype=np.dtype(dtype))
  native = native_checkpoints.save_t5x_checkpoint(
      str(tmp_path), checkpoints.open_checkpoint(str(tmp_path / 'a')),
      save_dtype=None)
  assert native.endswith('checkpoint_0')
  assert_equal(read(native), ours_of(tensors))
  write(native, tmp_path / 'b', largest)
  files = sorted((tmp_path / 'b').glob('*.safetensors'))
  assert (len(files) > 1) == (largest == 3000)
  found = {}
  for file in files:
    held = safetensors_numpy.load_file(file)
    assert sum(x.nbytes for x in held.values()) <= largest
    found |= held
  assert_equal(found, tensors)
  assert hugging_face_config.read(tmp_path / 'b') == hugging_face_config.read(
      tmp_path / 'a')
  assert sorted(p.name for p in tmp_path.iterdir()) == [
      'a', 'b', 'checkpoint_0']


# What is done to the tensors of a T5 1.1, and what the error says.
BIAS = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
DAMAGES = {
    'missing': (lambda t: t.pop('encoder.block.1.layer.0.SelfAttention.k.weight'
                                ), r'no tensor encoder\.block\.1.*k\.weight'),
    'no table': (lambda t: t.pop('shared.weight'), 'no tensor shared'),
    'no head': (lambda t: t.pop('lm_head.weight'), 'no tensor lm_head'),
    'another table': (lambda t: t.update({
        'encoder.embed_tokens.weight': np.zeros((32, 8))}),
        'different, but they are names of one table'),
    'extra': (lambda t: t.update({'more.weight': np.zeros(2)}),
              r'a tensor more\.weight'),
    'extra layer': (lambda t: t.update({
        'encoder.block.2.layer.0.layer_norm.weight': np.zeros(8)}),
        r'a tensor encoder\.block\.2'),
    'another shape': (lambda t: t.update({'lm_head.weight': np.zeros((30, 8))}),
                      r'lm_head\.weight is \[30, 8\].*says \[32, 8\]'),
    'transposed': (lambda t: t.update({
        'encoder.block.0.layer.1.DenseReluDense.wo.weight': np.zeros((16, 8))}),
        r'wo\.weight is \[16, 8\].*says \[8, 16\]'),
    'rows': (lambda t: t.update({'shared.weight': np.zeros((30, 8))}),
             r'shared\.weight is \[30, 8\].*config\.json says \[32, 8\]'),
    'flat': (lambda t: t.update({'lm_head.weight': np.zeros(256)}),
             r'lm_head\.weight is \[256\]'),
}


@pytest.mark.parametrize('case', DAMAGES)
def test_what_is_not_the_model_of_its_config_is_refused(
    theirs, tmp_path, case):
  damage, says = DAMAGES[case]
  tensors = theirs.tensors(theirs.CONFIG)
  damage(tensors)
  theirs.write(tmp_path, tensors=tensors)
  with pytest.raises(checkpoints.CheckpointError, match=says):
    read(tmp_path)


@pytest.mark.parametrize('tied', [{'tie_word_embeddings': True}, {}])
def test_a_head_that_is_said_to_be_tied_is_the_table(theirs, tmp_path, tied):
  tensors = theirs.tensors(theirs.CONFIG)
  del tensors['lm_head.weight']
  theirs.write(tmp_path, tensors=tensors)
  file = tmp_path / 'config.json'
  said = json.loads(file.read_text()) | {'scale_decoder_outputs': False}
  del said['tie_word_embeddings']
  file.write_text(json.dumps(said | tied))
  found = read(tmp_path)
  np.testing.assert_array_equal(
      found['decoder/logits_dense/kernel'], tensors['shared.weight'].T)


def test_names_that_older_files_hold_besides_are_used(theirs, tmp_path):
  tensors = theirs.tensors(
      theirs.CONFIG | theirs.T5_1_0)
  aliases = ['encoder.embed_tokens.weight', 'decoder.embed_tokens.weight',
             'lm_head.weight']
  old = {**tensors, **{a: tensors['shared.weight'] for a in aliases},
         BIAS: np.zeros((32, 2), np.float32)}
  theirs.write(tmp_path / 'all', theirs.T5_1_0, old)
  assert_equal(read(tmp_path / 'all'), ours_of(tensors))
  del old['shared.weight']
  theirs.write(tmp_path / 'no shared', theirs.T5_1_0, old)
  assert_equal(read(tmp_path / 'no shared'), ours_of(tensors))
  for alias in aliases[1:]:
    changed = old[alias].copy()
    changed[3, 2] += 1
    theirs.write(tmp_path / alias, theirs.T5_1_0,
                       old | {alias: changed})
    with pytest.raises(checkpoints.CheckpointError,
                       match=f'{re.escape(alias)} and .* are different'):
      read(tmp_path / alias)
    part = checkpoints.open_checkpoint(str(tmp_path / alias))[
        'target/token_embedder/embedding'].read_slice(np.s_[4:8, :])
    assert part.shape == (4, 8)


@pytest.mark.parametrize('files', [[], ['pytorch_model.bin']])
def test_pickles_are_not_read(theirs, tmp_path, files):
  theirs.write(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  for name in files:
    (tmp_path / name).write_bytes(b'\x80\x04.')
  with pytest.raises(checkpoints.CheckpointError, match='save_pretrained'):
    checkpoints.open_checkpoint(str(tmp_path))


def test_a_remote_folder_is_refused():
  with pytest.raises(checkpoints.CheckpointError, match='local disks only'):
    hugging_face.read('gs://bucket/model')


# What is done to a checkpoint of ours before it is written as theirs.
WRONG = {
    'missing': (lambda a: a.pop('target/decoder/decoder_norm/scale'),
                'no parameter decoder/decoder_norm/scale'),
    'a prompt': (lambda a: a.update({
        'target/encoder/prompt/prompt/prompt': a[
            'target/token_embedder/embedding']}), 'A prompt is no part'),
    'misshapen': (lambda a: a.update({
        'target/decoder/layers_0/mlp/wo/kernel': a[
            'target/token_embedder/embedding']}), r'mlp/wo/kernel is \[32, 8\]'
    ),
    'no table': (lambda a: a.pop('target/token_embedder/embedding'), 'no T5'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_no_t5_is_not_written(theirs, tmp_path, case):
  change, says = WRONG[case]
  theirs.write(tmp_path / 'a')
  arrays = checkpoints.open_checkpoint(str(tmp_path / 'a'))
  change(arrays)
  with pytest.raises(checkpoints.CheckpointError, match=says):
    write_arrays(tmp_path / 'b', arrays)
  assert [p.name for p in tmp_path.iterdir()] == ['a']


def write_arrays(folder, arrays):
  hugging_face.write(str(folder), arrays)


def test_nothing_is_overwritten_nor_left_half_written(theirs, tmp_path):
  tensors = theirs.write(tmp_path / 'a')
  with pytest.raises(whole_writes.ExistsError, match='already'):
    write(tmp_path / 'a', tmp_path / 'a')
  assert_equal(read(tmp_path / 'a'), ours_of(tensors))
  tensors['lm_head.weight'][0, 0] = np.nan
  theirs.write(tmp_path / 'c', tensors=tensors)
  with pytest.raises(checkpoints.CheckpointError, match='NaN'):
    write(tmp_path / 'c', tmp_path / 'd')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'c']


def test_a_symlink_out_of_the_folder_is_not_followed(theirs, tmp_path):
  for name in ('config.json', 'model.safetensors'):
    folder = tmp_path / name.replace('.', '_')
    theirs.write(folder)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(checkpoints.CheckpointError, match='not followed'):
      checkpoints.open_checkpoint(str(folder))


def test_a_config_is_plain_json(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps([1]))
  with pytest.raises(checkpoints.CheckpointError, match='JSON list'):
    checkpoints.open_checkpoint(str(tmp_path))
