"""Hugging Face's `config.json` of a T5, and our `T5Config`.

Which of T5's two heads a model has is said in a roundabout way. T5 1.0 scores
with the embedding table and scales the decoder's output by `1 / sqrt(H)`; T5
1.1, mT5, ByT5 and Flan-T5 have a table of their own and do not scale. Files
before transformers 5 say so in `tie_word_embeddings`. Transformers 5 writes
that as true for all of them and says it in `scale_decoder_outputs`; its mT5
never scales.

The file is untrusted: what would make transformers run code of the repository
is refused, and so is a size that no such model has.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from t5x import lazy_arrays
from t5x import untrusted_files
from t5x.examples.t5 import config as t5_config

CheckpointError = lazy_arrays.CheckpointError
T5Config = t5_config.T5Config
Json = Mapping[str, Any]

NAME = 'config.json'
# With their class.
_MODEL_TYPES = {'t5': 'T5ForConditionalGeneration',
                'mt5': 'MT5ForConditionalGeneration'}
# Their name, our name, the largest that is believed, and what is taken if it is
# not said; with None it must be said.
_SIZES: dict[str, tuple[str, int, int | None]] = {
    'vocab_size': ('vocab_size', 2**22, None),
    'd_model': ('emb_dim', 2**17, None),
    'd_kv': ('head_dim', 2**14, None),
    'd_ff': ('mlp_dim', 2**19, None),
    'num_heads': ('num_heads', 2**12, None),
    'num_layers': ('num_encoder_layers', 1024, None),
    'num_decoder_layers': ('num_decoder_layers', 1024, 0),
    'relative_attention_num_buckets': ('relpos_num_buckets', 4096, 32),
    'relative_attention_max_distance': ('relpos_max_distance', 2**20, 128),
}
# Their name, our activations, what else they call it.
PROJECTIONS = {
    'relu': (('relu',), 'relu'),
    'gated-gelu': (('gelu', 'linear'), 'gelu_new'),
    'gated-silu': (('silu', 'linear'), 'silu'),
}
# Whose values would be run, or change what weights mean.
_CODE = ('auto_map', 'custom_pipelines', 'trust_remote_code',
         'quantization_config', 'custom_generate')
# What decides the function of a model; the rest of T5Config is how to run it.
_SAME = (*(ours for ours, _, _ in _SIZES.values()), 'mlp_activations',
         'logits_via_embedding')


def read(folder: str | pathlib.Path) -> T5Config:
  """The sizes and choices of a folder's model.

  Args:
    folder: a local folder with a `config.json`.

  Returns:
    The config; dtypes and dropout are our defaults.

  Raises:
    CheckpointError: if the file cannot be used, or is not of a T5.
  """
  return parse(read_json(folder), str(pathlib.Path(folder) / NAME))


def read_json(folder: str | pathlib.Path) -> Json:
  """The content of a folder's `config.json`, known not to name code.

  Raises:
    CheckpointError: if the file cannot be used.
  """
  try:
    path = untrusted_files.inside(folder, NAME)
    found = untrusted_files.read_json(path)
  except untrusted_files.UntrustedFileError as error:
    raise CheckpointError(str(error)) from error
  _refuse_code(found, str(path))
  return found


def _refuse_code(value: Any, where: str) -> None:
  """Fails on a set key at any depth that makes a reader run or load code."""
  if isinstance(value, list):
    for item in value:
      _refuse_code(item, where)
  elif isinstance(value, dict):
    for key, item in value.items():
      if item is not None and (key in _CODE or key.endswith('_internal')):
        raise CheckpointError(
            f'{where} has the key {key!r}, which names code or another form of '
            'weights; such a model is not read. Save it anew without.')
      _refuse_code(item, where)


def parse(found: Json, where: str) -> T5Config:
  """The config that a JSON object stands for.

  Args:
    found: the object.
    where: what it is, for errors.

  Returns:
    See `read`.

  Raises:
    CheckpointError: naming the key, what was found and what was expected.
  """
  kind = found.get('model_type')
  if not isinstance(kind, str) or kind not in _MODEL_TYPES:
    raise CheckpointError(
        f'{where} has model_type {str(kind)[:40]!r}; expected one of '
        f'{tuple(_MODEL_TYPES)} (ByT5 and Flan-T5 are t5). Other models are '
        'not read.')
  sizes: dict[str, Any] = {ours: _size(found, theirs, where)
           for theirs, (ours, _, _) in _SIZES.items()}
  sizes['num_decoder_layers'] = (
      sizes['num_decoder_layers'] or sizes['num_encoder_layers'])
  default = 'relu' if kind == 't5' else 'gated-gelu'
  activations = _activations(found, default, where)
  for key, wanted in (('layer_norm_epsilon', 1e-6),
                      ('is_encoder_decoder', True)):
    if (value := found.get(key, wanted)) != wanted:
      raise CheckpointError(
          f'{where} has {key} {str(value)[:40]}; only {wanted} can be '
          'computed.')
  return T5Config(**sizes, mlp_activations=activations,
                  logits_via_embedding=kind == 't5' and _scales(found, where))


def _size(found: Json, key: str, where: str) -> int:
  """A size, within bounds."""
  _, largest, default = _SIZES[key]
  value = found.get(key, default)
  if key == 'num_decoder_layers' and value is None:
    value = default
  if type(value) is not int or not (
      0 < value <= largest or value == default == 0):
    raise CheckpointError(
        f'{where} has {key} {str(value)[:40]!r}; expected a whole number from '
        f'1 to {largest:,}.')
  return value


def _activations(
    found: Json, default: str, where: str) -> tuple[str, ...]:
  """The activations of a block."""
  named = found.get('feed_forward_proj', default)
  known = PROJECTIONS.get(named) if isinstance(named, str) else None
  if known is None:
    raise CheckpointError(
        f'{where} has feed_forward_proj {str(named)[:40]!r}; expected one of '
        f'{sorted(PROJECTIONS)}.')
  activations, alias = known
  for key, wanted in (('dense_act_fn', alias),
                      ('is_gated_act', len(activations) > 1)):
    if (value := found.get(key, wanted)) != wanted:
      raise CheckpointError(
          f'{where} has feed_forward_proj {named!r} and {key} '
          f'{str(value)[:40]!r}, which contradict each other; expected '
          f'{wanted!r}.')
  return activations


def _scales(found: Json, where: str) -> bool:
  """Whether a T5 scales the decoder's output, as one with a tied head does."""
  tied = found.get('tie_word_embeddings', True)
  scales = found.get('scale_decoder_outputs', tied)
  for key, value in (('tie_word_embeddings', tied),
                     ('scale_decoder_outputs', scales)):
    if not isinstance(value, bool):
      raise CheckpointError(
          f'{where} has {key} {str(value)[:40]!r}; expected true or false.')
  return scales


def to_json(config: T5Config, model_type: str = 't5') -> dict[str, Any]:
  """The `config.json` of a model.

  Args:
    config: its sizes and choices.
    model_type: `t5` or `mt5`.

  Returns:
    What transformers reads, before version 5 and since.

  Raises:
    CheckpointError: if transformers has no such model.
  """
  activations = tuple(config.mlp_activations)
  named = [name for name, (ours, _) in PROJECTIONS.items()
           if ours == activations]
  if not named:
    raise CheckpointError(
        f'mlp_activations are {activations}; Hugging Face has no T5 of them, '
        f'only {[ours for ours, _ in PROJECTIONS.values()]}.')
  tied = config.logits_via_embedding
  return {
      'architectures': [_MODEL_TYPES[model_type]],
      'model_type': model_type,
      **{theirs: getattr(config, ours)
         for theirs, (ours, _, _) in _SIZES.items()},
      'feed_forward_proj': named[0],
      'tie_word_embeddings': tied,
      'scale_decoder_outputs': tied,
      'layer_norm_epsilon': 1e-6,
      'dropout_rate': 0.1,
      'is_encoder_decoder': True,
      'decoder_start_token_id': 0,
      'pad_token_id': 0,
      'eos_token_id': 1,
      'use_cache': True,
  }


def of_shapes(shapes: Mapping[str, tuple[int, ...]], where: str) -> T5Config:
  """The config that the shapes of a model's parameters tell.

  They do not tell the gate, which is taken for GELU, nor the distance from
  which relative positions share a bucket, which is taken for 128. Most
  published models have these, but not all: Flan-UL2 is gated by SiLU.

  Args:
    shapes: from our parameter path to shape, layers not stacked.
    where: what they are of, for errors.

  Returns:
    The config.

  Raises:
    CheckpointError: if they are not of an encoder-decoder.
  """
  layers = {stack: len({path.split('/')[1] for path in shapes
                        if path.startswith(f'{stack}/layers_')})
            for stack in ('encoder', 'decoder')}
  try:
    rows, width = shapes['token_embedder/embedding']
    heads, buckets = shapes['encoder/relpos_bias/rel_embedding']
    _, inner = shapes['encoder/layers_0/attention/query/kernel']
    hidden, _ = shapes['encoder/layers_0/mlp/wo/kernel']
  except (KeyError, ValueError) as error:
    raise CheckpointError(
        f'{where} is no T5 whose layers stand one by one (parameter {error}); '
        'no config.json can be made for it.') from error
  gated = 'encoder/layers_0/mlp/wi_0/kernel' in shapes
  return T5Config(
      vocab_size=rows, emb_dim=width, num_heads=heads,
      head_dim=inner // heads, mlp_dim=hidden,
      mlp_activations=('gelu', 'linear') if gated else ('relu',),
      logits_via_embedding='decoder/logits_dense/kernel' not in shapes,
      relpos_num_buckets=buckets, num_encoder_layers=layers['encoder'],
      num_decoder_layers=layers['decoder'])


def require_same(found: T5Config, given: Any, where: str) -> None:
  """Fails if a network is not the one that a folder holds the weights of.

  Args:
    found: of the folder.
    given: the network's config, as gin made it.
    where: the folder.

  Raises:
    CheckpointError: naming every field that differs, with both values.
  """
  if not isinstance(given, T5Config):
    raise CheckpointError(
        f'{where} holds an encoder-decoder, but the network has the config '
        f'{type(given).__name__}; give a model file of T5.')
  differing = [
      f'{name} is {_plain(given, name)!r} but should be '
      f'{_plain(found, name)!r}'
      for name in _SAME if _plain(given, name) != _plain(found, name)]
  if differing:
    raise CheckpointError(
        f'The model file is not of {where}: T5Config.'
        f'{", ".join(differing)}. Give models/hugging_face_prompt.gin, which '
        f'takes all of them from its {NAME}, or set them in the model file.')


def _plain(config: T5Config, name: str) -> Any:
  """A field, a sequence as a tuple."""
  value = getattr(config, name)
  return tuple(value) if isinstance(value, list) else value
