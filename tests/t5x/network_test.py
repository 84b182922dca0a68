import dataclasses
import functools
import json
import math
import pathlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import train_state
from t5x.examples.t5 import attention
from t5x.examples.t5 import network
from t5x.examples.t5 import sequence as sequence_lib

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'parameters.json'

# Published sizes: width, heads, encoder and decoder layers, head width, hidden.
SIZES = {
    't5_1_0': {'small': (512, 8, 6, 6, 64, 2048),
               'base': (768, 12, 12, 12, 64, 3072),
               'large': (1024, 16, 24, 24, 64, 4096),
               '3B': (1024, 32, 24, 24, 128, 16384),
               '11B': (1024, 128, 24, 24, 128, 65536)},
    't5_1_1': {'small': (512, 6, 8, 8, 64, 1024),
               'base': (768, 12, 12, 12, 64, 2048),
               'large': (1024, 16, 24, 24, 64, 2816),
               'xl': (2048, 32, 24, 24, 64, 5120),
               'xxl': (4096, 64, 24, 24, 64, 10240)},
    'byt5': {'small': (1472, 6, 12, 4, 64, 3584),
             'base': (1536, 12, 18, 6, 64, 3968),
             'large': (1536, 16, 36, 12, 64, 3840),
             'xl': (2560, 32, 36, 12, 64, 6720),
             'xxl': (4672, 64, 36, 12, 64, 12352)},
}
VOCABULARY = {'t5_1_0': 32128, 't5_1_1': 32128, 'mt5': 250112, 'byt5': 384}


def _config(family, size):
  table = SIZES['t5_1_1' if family == 'mt5' else family][size]
  names = ('emb_dim', 'num_heads', 'num_encoder_layers', 'num_decoder_layers',
           'head_dim', 'mlp_dim')
  old = family == 't5_1_0'
  return network.T5Config(
      vocab_size=VOCABULARY[family], logits_via_embedding=old,
      mlp_activations=('relu',) if old else ('gelu', 'linear'),
      **dict(zip(names, table, strict=True)))


def _listing(config) -> dict[str, str]:
  """Path to shape and axes of every parameter."""
  ids = jnp.ones((1, 2), jnp.int32)
  variables = jax.eval_shape(
      lambda key: network.Transformer(config).init(
          key, ids, ids, ids, enable_dropout=False), jax.random.key(0))
  return {path: f'{list(box.value.shape)} {", ".join(box.names)}'
          for path, box in train_state.flat(variables['params']).items()}


@pytest.mark.parametrize('family', ['t5_1_0', 't5_1_1', 'byt5'])
def test_parameter_paths_shapes_and_axes_are_t5xs(family):
  golden = json.loads(GOLDEN.read_text())
  assert _listing(_config(family, 'small')) == golden[family]


# Published parameter counts, rounded as published.
@pytest.mark.parametrize('family,size,millions', [
    ('t5_1_0', 'small', 60), ('t5_1_0', 'base', 223), ('t5_1_0', 'large', 738),
    ('t5_1_0', '3B', 2852), ('t5_1_0', '11B', 11307),
    ('t5_1_1', 'small', 77), ('t5_1_1', 'base', 248), ('t5_1_1', 'large', 783),
    ('t5_1_1', 'xl', 2850), ('t5_1_1', 'xxl', 11135),
    ('mt5', 'small', 300), ('mt5', 'base', 582), ('mt5', 'large', 1230),
    ('mt5', 'xl', 3743), ('mt5', 'xxl', 12921),
    ('byt5', 'small', 300), ('byt5', 'base', 582), ('byt5', 'large', 1230),
    ('byt5', 'xl', 3743), ('byt5', 'xxl', 12921),
])
def test_sizes_have_the_published_number_of_parameters(family, size, millions):
  config = _config(family, size)
  ids = jnp.ones((1, 2), jnp.int32)
  variables = jax.eval_shape(
      lambda key: network.Transformer(config).init(
          key, ids, ids, ids, enable_dropout=False), jax.random.key(0))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(variables))
  assert count / 1e6 == pytest.approx(millions, rel=0.01)


def _apply(module, params, *args, **kwargs):
  """`module.apply` without dropout, compiled."""
  return jax.jit(lambda params, args: module.apply(
      {'params': params}, *args, enable_dropout=False, **kwargs))(params, args)


def _ids(seed, *shape):
  return jnp.asarray(
      np.random.default_rng(seed).integers(2, 32, shape), jnp.int32)


def test_decoder_is_causal(tiny):
  # The gradient of an output with respect to later inputs is exactly zero.
  module = tiny.module()
  params = tiny.params(module)
  encoded = _apply(module, params, _ids(0, 1, 5), method='encode')
  x = params['token_embedder']['embedding'][_ids(1, 1, 6)]

  def outputs(x):
    target = sequence_lib.Sequence.create(x, jnp.ones((1, 6), bool))
    logits = module.apply(
        {'params': params}, encoded, target,
        method=lambda m, e, t: m.decoder(e, t, deterministic=True))
    return jnp.sum(logits[0], axis=-1)

  gradients = jax.jit(jax.jacrev(outputs))(x)[:, 0]  # [output, input, H]
  depends = np.any(gradients != 0, axis=-1)
  np.testing.assert_array_equal(depends, np.tri(6, dtype=bool))


def test_padding_changes_nothing(tiny):
  module = tiny.module()
  params = tiny.params(module)
  x, y = _ids(0, 2, 5), _ids(1, 2, 4)
  longer_x = jnp.pad(x, ((0, 0), (0, 3)))
  longer_y = jnp.pad(y, ((0, 0), (0, 2)))
  short = _apply(module, params, x, y, y)
  long = _apply(module, params, longer_x, longer_y, longer_y)
  np.testing.assert_allclose(short, long[:, :4], rtol=1e-5, atol=1e-5)


def test_packed_equals_unpacked(tiny):
  module = tiny.module()
  params = tiny.params(module)
  x, y = _ids(0, 2, 4), _ids(1, 2, 3)
  apart = _apply(module, params, x, y, y)
  segments = jnp.repeat(jnp.array([[1, 2]], jnp.int32), 4, axis=1)
  target_segments = jnp.repeat(jnp.array([[1, 2]], jnp.int32), 3, axis=1)
  y = y.reshape(1, 6)
  together = _apply(
      module, params, x.reshape(1, 8), y, y, segments, target_segments)
  np.testing.assert_allclose(
      apart.reshape(1, 6, -1), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_cached_decoding_equals_recomputing(tiny, scan):
  module = tiny.module(scan_layers=scan)
  params = tiny.params(module)
  x, y = _ids(0, 2, 5), _ids(1, 2, 6)
  inputs = jnp.pad(y, ((0, 0), (1, 0)))[:, :-1]
  whole = _apply(module, params, x, inputs, y)
  encoded = _apply(module, params, x, method='encode')

  @functools.partial(jax.jit, static_argnames='mutable')
  def step(variables, token, place, mutable):
    return module.apply(
        {'params': params, **variables}, encoded, token,
        decoder_positions=place[None, None], enable_dropout=False,
        max_decode_length=6, method='decode', mutable=mutable)

  _, variables = step({}, inputs[:, :1], jnp.int32(0), ('cache', 'encoded_kv'))
  for place in range(6):
    logits, new = step(variables, inputs[:, place:place + 1],
                       jnp.int32(place), ('cache',))
    variables |= new
    np.testing.assert_allclose(
        logits[:, 0], whole[:, place], rtol=1e-5, atol=1e-5)


def test_decodes_of_one_input_share_its_encoding(tiny):
  # Three decodes per row attend to one copy of the row's keys and values.
  module = tiny.module()
  params = tiny.params(module)
  x, y = _ids(0, 2, 5), _ids(1, 6, 1)

  @functools.partial(jax.jit, static_argnames='mutable')
  def first_step(tokens, encoder_tokens, variables, mutable):
    encoded = module.apply({'params': params}, encoder_tokens,
                           enable_dropout=False, method='encode')
    return module.apply(
        {'params': params, **variables}, encoded, tokens,
        decoder_positions=jnp.zeros((1, 1), jnp.int32), enable_dropout=False,
        max_decode_length=3, method='decode', mutable=mutable)

  both = ('cache', 'encoded_kv')
  _, variables = first_step(y[::3], x, {}, both)
  shared, _ = first_step(
      y, x, {'encoded_kv': variables['encoded_kv']}, ('cache',))
  copied, _ = first_step(y, jnp.repeat(x, 3, axis=0), {}, both)
  np.testing.assert_allclose(shared, copied, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('remat', ['none', 'minimal', 'full'])
def test_scanned_layers_equal_unrolled_ones(tiny, remat):
  plain = tiny.module()
  scanned = tiny.module(scan_layers=True, remat_policy=remat)
  params = tiny.params(plain)
  stacked = dict(train_state.flat(params))
  for side in ('encoder', 'decoder'):
    names = [p for p in stacked if p.startswith(f'{side}/layers_0/')]
    for name in names:
      rest = name.removeprefix(f'{side}/layers_0/')
      layers = [stacked.pop(f'{side}/layers_{i}/{rest}') for i in range(2)]
      stacked[f'{side}/{side}/{rest}'] = jnp.stack(layers, axis=1)
  stacked = train_state.nested(stacked)
  x, y = _ids(0, 2, 5), _ids(1, 2, 4)

  def loss(module):
    return jax.jit(jax.value_and_grad(lambda params: jnp.sum(jnp.square(
        module.apply({'params': params}, x, y, y, enable_dropout=False)))))

  value, gradient = loss(plain)(params)
  other_value, other_gradient = loss(scanned)(stacked)
  np.testing.assert_allclose(value, other_value, rtol=1e-5)
  np.testing.assert_allclose(
      gradient['token_embedder']['embedding'],
      other_gradient['token_embedder']['embedding'], rtol=1e-4, atol=1e-4)


def test_dtypes_are_set_apart(tiny):
  module = tiny.module(dtype='bfloat16', param_dtype='float32',
                       logits_dtype='float32')
  params = tiny.params(module)
  x = _ids(0, 2, 5)
  assert _apply(module, params, x, x, x).dtype == jnp.float32
  assert _apply(module, params, x, method='encode').x.dtype == jnp.bfloat16
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype('float32')}
  half = tiny.module(param_dtype='bfloat16', dtype='bfloat16')
  assert {a.dtype for a in jax.tree.leaves(tiny.params(half))} == {
      np.dtype(jnp.bfloat16)}


def test_float32_attention_weights_are_closer(tiny):
  def states(**dtypes):
    module = tiny.module(**dtypes)
    return _apply(module, tiny.params(module), _ids(0, 4, 30),
                  method='encode').x.astype(jnp.float32)

  exact = states(dtype='float32')
  low = states(dtype='bfloat16')
  mixed = states(dtype='bfloat16', float32_attention_logits=True)
  assert np.abs(mixed - exact).mean() < np.abs(low - exact).mean()


def test_tied_logits_are_products_with_the_table(tiny):
  # Scaling the row of a token that does not occur scales its logit alone.
  module = tiny.module(logits_via_embedding=True)
  params = tiny.params(module)
  x = _ids(0, 2, 5)
  logits = _apply(module, params, x, x, x)
  table = params['token_embedder']['embedding']
  changed = params | {
      'token_embedder': {'embedding': table.at[0].multiply(2.0)}}
  again = _apply(module, changed, x, x, x)
  np.testing.assert_allclose(again[..., 0], 2 * logits[..., 0], rtol=1e-5)
  np.testing.assert_allclose(again[..., 1:], logits[..., 1:], rtol=1e-5)


def test_unknown_remat_policy_is_refused():
  with pytest.raises(ValueError, match="'some'.*none, minimal, full"):
    network.T5Config(vocab_size=8, remat_policy='some')


def test_config_has_t5xs_defaults():
  config = network.T5Config(vocab_size=7)
  published = {
      'vocab_size': 7, 'dtype': 'float32', 'emb_dim': 512, 'num_heads': 8,
      'num_encoder_layers': 6, 'num_decoder_layers': 6, 'head_dim': 64,
      'mlp_dim': 2048, 'mlp_activations': ('relu',), 'dropout_rate': 0.1,
      'logits_via_embedding': False, 'float32_attention_logits': False}
  assert published.items() <= dataclasses.asdict(config).items()


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize('buckets,distance', [(32, 128), (8, 20), (16, 64)])
def test_buckets_follow_the_logarithm(bidirectional, buckets, distance):
  """Against the formula in exact arithmetic, for every distance."""
  relative = np.arange(-300, 301)
  found = attention.relative_position_bucket(
      jnp.asarray(relative), bidirectional=bidirectional, num_buckets=buckets,
      max_distance=distance)
  half = buckets // 2 if bidirectional else buckets
  exact = half // 2
  for r, bucket in zip(relative.tolist(), found.tolist(), strict=True):
    n = abs(r) if bidirectional else max(-r, 0)
    if n < exact:
      expected = n
    else:
      # floor(log(n/exact) / log(distance/exact) * m) >= k is
      # n^m exact^k >= exact^m distance^k: whole numbers only.
      m = half - exact
      expected = exact + max(
          k for k in range(m)
          if n**m * exact**k >= exact**m * distance**k)
    if bidirectional and r > 0:
      expected += half
    assert bucket == expected, r


def test_bias_of_a_later_query_is_a_row_of_the_whole(tiny):
  # In cached decoding the query stands at an offset.
  module = attention.RelativePositionBiases(tiny.config(), bidirectional=False)
  places = jnp.arange(20, dtype=jnp.int32)[None]
  variables = nn.meta.unbox(module.init(jax.random.key(0), places, places))
  whole = module.apply(variables, places, places)
  for place in (0, 7, 19):
    row = module.apply(variables, places[:, place:place + 1], places)
    np.testing.assert_array_equal(row, whole[:, :, place:place + 1])


def test_attention_dropout_is_the_same_for_all_queries():
  x = jax.random.normal(jax.random.key(0), (2, 6, 3, 4))
  values = jnp.broadcast_to(jnp.eye(6)[None, :, None], (2, 6, 3, 6))
  weights = attention.dot_product_attention(
      x, x, values, mask=jnp.ones((2, 1, 1, 6), bool),
      dropout_rng=jax.random.key(1), dropout_rate=0.5)
  dropped = weights == 0  # [B, Q, N, T]
  assert dropped.any() and not dropped.all()
  np.testing.assert_array_equal(
      dropped, jnp.broadcast_to(dropped[:, :1], dropped.shape))


def test_both_attention_paths_agree():
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v = (jax.random.normal(key, (2, 5, 3, 4)) for key in keys[:3])
  bias = jax.random.normal(keys[3], (1, 3, 5, 5))
  mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)[:, None, None]
  fast = attention.dot_product_attention(q, k, v, mask=mask, bias=bias)
  # With a key but almost no dropout the hand-written path is taken.
  slow = attention.dot_product_attention(
      q, k, v, mask=mask, bias=bias, dropout_rng=jax.random.key(0),
      dropout_rate=1e-9)
  np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6)
