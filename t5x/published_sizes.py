"""Which published size a checkpoint has, told by the shapes in it."""

from collections.abc import Collection, Mapping
import pathlib
import re

Shape = tuple[int, ...]

_FOLDER = pathlib.Path(__file__).parent / 'examples' / 't5'
# Rows of the embedding table tell the families apart, and T5's two versions
# the gate of the second.
_FAMILIES = {
    (250112, True): 'mt5', (384, True): 'byt5',
    (32128, True): 't5_1_1', (32128, False): 't5_1_0'}


def model_file(shapes: Mapping[str, Shape]) -> str | None:
  """The model file that fits a checkpoint of one of T5's families.

  Args:
    shapes: from parameter path to shape, layers not stacked.

  Returns:
    A path for `--gin_file`, or None if no published size has these shapes.
  """
  embedding = shapes.get('token_embedder/embedding')
  gated = shapes.get('encoder/layers_0/mlp/wi_0/kernel')
  mlp = gated or shapes.get('encoder/layers_0/mlp/wi/kernel')
  query = shapes.get('encoder/layers_0/attention/query/kernel')
  if embedding is None or mlp is None or query is None:
    return None
  family = _FAMILIES.get((embedding[0], gated is not None))
  found = (embedding[1], mlp[1], query[1], _layers('encoder', shapes),
           _layers('decoder', shapes))
  for file in sorted(_FOLDER.glob(f'{family}/*.gin')):
    if _sizes(file.read_text(encoding='utf-8')) == found:
      return f't5x/examples/t5/{family}/{file.name}'
  return None


def _layers(stack: str, paths: Collection[str]) -> int:
  """How many layers of a stack have parameters."""
  found = (re.match(rf'{stack}/layers_(\d+)/', path) for path in paths)
  return len({match[1] for match in found if match})


def _sizes(text: str) -> tuple[int, ...] | None:
  """Widths and depths that a model file binds; None if it binds no size."""
  pairs = re.findall(r'(\w+) = (\d+)$', text, re.MULTILINE)
  bound = {name: int(number) for name, number in pairs}
  try:
    return (bound['emb_dim'], bound['mlp_dim'],
            bound['num_heads'] * bound['head_dim'],
            bound['num_encoder_layers'], bound['num_decoder_layers'])
  except KeyError:
    return None
