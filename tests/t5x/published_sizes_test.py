import pytest
from t5x import published_sizes

T5, MT5, BYT5 = 32128, 250112, 384
# Published: vocabulary, width, heads, layers of both stacks, widths of a head
# and of the MLP.
SIZES = {
    't5_1_0/small': (T5, 512, 8, 6, 6, 64, 2048),
    't5_1_0/3B': (T5, 1024, 32, 24, 24, 128, 16384),
    't5_1_0/11B': (T5, 1024, 128, 24, 24, 128, 65536),
    't5_1_1/small': (T5, 512, 6, 8, 8, 64, 1024),
    't5_1_1/base': (T5, 768, 12, 12, 12, 64, 2048),
    't5_1_1/xxl': (T5, 4096, 64, 24, 24, 64, 10240),
    'mt5/large': (MT5, 1024, 16, 24, 24, 64, 2816),
    'byt5/small': (BYT5, 1472, 6, 12, 4, 64, 3584),
    'byt5/xl': (BYT5, 2560, 32, 36, 12, 64, 6720),
}


def shapes(family, vocab, width, heads, encoder, decoder, head, mlp):
  """What tells a published checkpoint's size, as T5X names it."""
  wi = 'wi' if family == 't5_1_0' else 'wi_0'
  found = {'token_embedder/embedding': (vocab, width)}
  for stack, layers in (('encoder', encoder), ('decoder', decoder)):
    attention = 'attention' if stack == 'encoder' else 'self_attention'
    for i in range(layers):
      found[f'{stack}/layers_{i}/mlp/{wi}/kernel'] = (width, mlp)
      found[f'{stack}/layers_{i}/{attention}/query/kernel'] = (
          width, heads * head)
  return found


@pytest.mark.parametrize('name', SIZES)
def test_a_published_size_is_known_by_its_shapes(name):
  found = shapes(name.split('/')[0], *SIZES[name])
  assert published_sizes.model_file(found) == f't5x/examples/t5/{name}.gin'


@pytest.mark.parametrize('changes', [
    {'token_embedder/embedding': (T5, 500)}, {'token_embedder/embedding': None},
    {'token_embedder/embedding': (T5 + 1, 768)},
    {'encoder/layers_12/mlp/wi_0/kernel': (768, 2048)}])
def test_other_shapes_are_of_no_published_size(changes):
  found = shapes('t5_1_1', *SIZES['t5_1_1/base']) | changes
  found = {path: shape for path, shape in found.items() if shape}
  assert published_sizes.model_file(found) is None
