"""Hugging Face's T5 folders as checkpoints: their names, our parameter paths.

    encoder.block.3.layer.1.DenseReluDense.wi_0.weight     [F, H]
    encoder/layers_3/mlp/wi_0/kernel                       [H, F]

Their matrices map columns, ours rows, so all but the table are transposed; what
is read of ours is then the transpose of what is read of theirs. Every tensor of
a folder is used and every parameter found, or opening fails.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import logging
import pathlib
import re
from typing import Any

import numpy as np
from t5x import hugging_face_config
from t5x import hugging_face_hub
from t5x import lazy_arrays
from t5x import safetensors_files
from t5x import whole_writes
from t5x.examples.t5 import config as t5_config_lib

CheckpointError = lazy_arrays.CheckpointError
LazyArray = lazy_arrays.LazyArray
T5Config = t5_config_lib.T5Config
Arrays = Mapping[str, LazyArray]

SPIECE = 'spiece.model'
LARGEST_SHARD = 5 * 2**30
_TABLE, _HEAD = 'shared.weight', 'lm_head.weight'
_EMBEDDING, _LOGITS = 'token_embedder/embedding', 'decoder/logits_dense/kernel'
# Files of before safetensors may hold the table under these names as well.
_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# T5 1.0 was published with it; no version of transformers uses it.
_UNUSED = ('decoder.block.0.layer.1.EncDecAttention.relative_attention_bias'
           '.weight')
# Of every layer of a stack: their name, our norm, our name.
_BLOCKS = {
    'encoder': (('SelfAttention', 'pre_attention_layer_norm', 'attention'),
                ('DenseReluDense', 'pre_mlp_layer_norm', 'mlp')),
    'decoder': (('SelfAttention', 'pre_self_attention_layer_norm',
                 'self_attention'),
                ('EncDecAttention', 'pre_cross_attention_layer_norm',
                 'encoder_decoder_attention'),
                ('DenseReluDense', 'pre_mlp_layer_norm', 'mlp')),
}
_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where Hugging Face keeps a parameter.

  Attributes:
    name: of their tensor.
    shape: of their tensor; ours is the other way round unless it is the table.
  """

  name: str
  shape: tuple[int, ...]


def places(config: T5Config) -> dict[str, Place]:
  """All parameters of a model: from our path to their place."""
  width, inner = config.emb_dim, config.num_heads * config.head_dim
  found = {_EMBEDDING: Place(_TABLE, (config.vocab_size, width))}
  if not config.logits_via_embedding:
    found[_LOGITS] = Place(_HEAD, (config.vocab_size, width))
  for stack, layers in (('encoder', config.num_encoder_layers),
                        ('decoder', config.num_decoder_layers)):
    found[f'{stack}/{stack}_norm/scale'] = Place(
        f'{stack}.final_layer_norm.weight', (width,))
    found[f'{stack}/relpos_bias/rel_embedding'] = Place(
        f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
        (config.relpos_num_buckets, config.num_heads))
    for layer in range(layers):
      for part, (theirs, norm, ours) in enumerate(_BLOCKS[stack]):
        path, prefix = (f'{stack}/layers_{layer}',
                        f'{stack}.block.{layer}.layer.{part}')
        found[f'{path}/{norm}/scale'] = Place(
            f'{prefix}.layer_norm.weight', (width,))
        for name, kernel, shape in _kernels(ours, config, inner):
          found[f'{path}/{ours}/{name}/kernel'] = Place(
              f'{prefix}.{theirs}.{kernel}.weight', shape)
  return found


def _kernels(
    block: str, config: T5Config, inner: int
) -> Iterator[tuple[str, str, tuple[int, int]]]:
  """The matrices of a block: our name, their name, their shape."""
  if block == 'mlp':
    many = len(config.mlp_activations) > 1
    for i in range(len(config.mlp_activations)):
      name = f'wi_{i}' if many else 'wi'
      yield name, name, (config.mlp_dim, config.emb_dim)
    yield 'wo', 'wo', (config.emb_dim, config.mlp_dim)
    return
  for ours, theirs in _ATTENTION.items():
    shape = (inner, config.emb_dim)
    yield ours, theirs, shape if ours != 'out' else shape[::-1]


def is_folder(folder: Any) -> bool:
  """Whether a folder is laid out as Hugging Face's models are."""
  return (folder / hugging_face_config.NAME).exists()


def read(folder: str) -> dict[str, LazyArray]:
  """Opens a model's folder as a checkpoint of step 0.

  Args:
    folder: a local folder with `config.json` and safetensors.

  Returns:
    From `target/<our path>` and `state/step` to unread array.

  Raises:
    CheckpointError: if the folder cannot be trusted, or a tensor is missing,
      extra or of another shape than `config.json` says.
  """
  if '://' in folder:
    raise CheckpointError(
        f'{folder}: folders of Hugging Face are read from local disks only; '
        'copy it, or convert it with python -m '
        'prompt_tuning.scripts.convert_checkpoint.')
  said = hugging_face_config.read_json(folder)
  config = hugging_face_config.parse(
      said, str(pathlib.Path(folder) / hugging_face_config.NAME))
  tensors = dict(_tensors(pathlib.Path(folder)))
  if tensors.pop(_UNUSED, None) is not None:
    logging.info('%s: %s is left out, as T5 does not use it.', folder, _UNUSED)
  _join_aliases(tensors, config,
                tied=said.get('tie_word_embeddings', True) is True)
  wanted = places(config)
  _require_all(folder, tensors, wanted)
  return {
      **{f'target/{path}': _oriented(
          f'target/{path}', tensors[place.name], path)
         for path, place in wanted.items()},
      'state/step': lazy_arrays.of_array('state/step', np.int32(0))}


def _tensors(folder: pathlib.Path) -> dict[str, LazyArray]:
  """The tensors of a folder, or how to come by them."""
  files = (safetensors_files.SINGLE, safetensors_files.INDEX)
  if any((folder / name).exists() for name in files):
    return safetensors_files.read_folder(folder)
  cached = re.search(r'models--(.+?)--([^/]+)/snapshots/', f'{folder}/')
  name = f'{cached[1]}/{cached[2]}' if cached else folder
  raise CheckpointError(
      f'{folder} has no {" or ".join(files)}. Weights in .bin files are '
      'pickles, which are not read. Convert them where transformers and torch '
      "are installed: python -c \"import transformers as t; t.AutoModelFor"
      f"Seq2SeqLM.from_pretrained('{name}').save_pretrained('converted')\", "
      'and give the folder converted; or name a revision of the hub that has '
      'safetensors with hf:owner/name@revision.')


def _join_aliases(
    tensors: dict[str, LazyArray], config: T5Config, *, tied: bool) -> None:
  """Leaves the table one name, and a tied model that is not scaled a head.

  Where it stands under several names, what is read of one is compared with what
  is read of the others. A model that is not scaled but has no head of its own,
  as transformers 5 makes them, scores with the table if its file says that they
  are tied; a model that is not tied has lost its head.
  """
  names = [_TABLE, *_ALIASES]
  if config.logits_via_embedding:
    names.append(_HEAD)
  there = {name: tensors.pop(name) for name in names if name in tensors}
  if not there:
    return
  tensors[_TABLE] = _agreeing(there)
  if tied and not config.logits_via_embedding:
    tensors.setdefault(_HEAD, tensors[_TABLE])


def _agreeing(arrays: Mapping[str, LazyArray]) -> LazyArray:
  """One array of several that must be the same."""
  (name, first), *others = arrays.items()

  def read_slice(index: lazy_arrays.Index) -> np.ndarray:
    part = first.read_slice(index)
    for other, array in others:
      if array.shape != first.shape or not np.array_equal(
          part, array.read_slice(index)):
        why = ('config.json ties them (tie_word_embeddings, '
               'scale_decoder_outputs)' if other == _HEAD
               else 'they are names of one table')
        raise CheckpointError(
            f'{other} and {name} are different, but {why}; no T5 has both.')
    return part

  return dataclasses.replace(first, read_slice=read_slice)


def _require_all(
    folder: str, tensors: Arrays, wanted: Mapping[str, Place]) -> None:
  """Fails if a tensor is missing, extra or misshapen."""
  names = {place.name for place in wanted.values()}
  where = f'{folder}/{hugging_face_config.NAME}'
  if missing := sorted(names - tensors.keys()):
    raise CheckpointError(
        f'{folder} has no tensor {missing[0]} ({len(missing)} of {len(names)} '
        f'are missing), which the model of {where} has.')
  if extra := sorted(tensors.keys() - names):
    raise CheckpointError(
        f'{folder} has a tensor {extra[0]} ({len(extra)} are too many), which '
        f'the model of {where} does not have.')
  for place in wanted.values():
    if (found := tensors[place.name].shape) != place.shape:
      raise CheckpointError(
          f'{folder}: {place.name} is {list(found)}, but {where} says '
          f'{list(place.shape)}.')


def _oriented(name: str, array: LazyArray, path: str) -> LazyArray:
  """Their array in our layout, or ours in theirs."""
  if path == _EMBEDDING or len(array.shape) < 2:
    return dataclasses.replace(array, name=name)
  return LazyArray(
      name, array.shape[::-1], array.dtype,
      lambda index: array.read_slice(index[::-1]).T)


def t5_config(
    path: str,
    dtype: str = 'float32',
    dropout_rate: float = 0.0,
    scan_layers: bool = False,
    remat_policy: str = 'none',
) -> T5Config:
  """The config of a model's folder, for gin.

  Args:
    path: a local folder, or `hf:owner/name[@revision]`.
    dtype: of activations.
    dropout_rate: see `T5Config`.
    scan_layers: see `T5Config`.
    remat_policy: see `T5Config`.

  Returns:
    The config.

  Raises:
    CheckpointError: see `hugging_face_config.read`.
  """
  return dataclasses.replace(
      hugging_face_config.read(local_folder(path, weights=False)), dtype=dtype,
      dropout_rate=dropout_rate, scan_layers=scan_layers,
      remat_policy=remat_policy)


def local_folder(path: str, weights: bool = True) -> str:
  """A path as it is; of a name of the hub the folder it is downloaded to.

  Args:
    path: a folder, or `hf:owner/name[@revision]`.
    weights: False downloads no tensors.

  Returns:
    A path.
  """
  if not hugging_face_hub.is_name(path):
    return path
  return hugging_face_hub.download(path, weights)


def require_same_model(directory: str, model: Any) -> None:
  """Fails if a network is not the one that a checkpoint's config describes.

  Args:
    directory: any checkpoint; only Hugging Face's have a config.
    model: its `module` is the network; one without a config is not looked at.

  Raises:
    CheckpointError: naming every field that differs, with both values.
  """
  given = getattr(getattr(model, 'module', None), 'config', None)
  if given is not None and is_folder(pathlib.Path(directory)):
    hugging_face_config.require_same(
        hugging_face_config.read(directory), given, directory)


def write(
    folder: str,
    arrays: Arrays,
    *,
    config: T5Config | None = None,
    model_type: str = 't5',
    largest_shard: int = LARGEST_SHARD,
) -> dict[str, str]:
  """Writes a model's folder that transformers loads, a tensor at a time.

  The folder appears whole or not at all.

  Args:
    folder: where; it must not be there yet.
    arrays: a checkpoint: `target/<our path>`, and other entries, which are left
      out.
    config: of the model; None takes what `config_of` says.
    model_type: see `hugging_face_config.to_json`.
    largest_shard: bytes of a file, unless one tensor is larger.

  Returns:
    From entry of the checkpoint to the tensor that it became.

  Raises:
    CheckpointError: if a parameter is missing, extra or misshapen.
    whole_writes.ExistsError: if the folder is there already.
  """
  config = config or config_of(arrays)
  wanted = places(config)
  tensors = _to_tensors(_parameters(arrays), wanted)
  shards = _shards(tensors, largest_shard)
  with whole_writes.folder(folder) as place:
    _write_json(place / hugging_face_config.NAME,
                hugging_face_config.to_json(config, model_type))
    for name, shard in shards.items():
      safetensors_files.write(place / name, shard, {'format': 'pt'})
    if len(shards) > 1:
      _write_json(place / safetensors_files.INDEX, {
          'metadata': {'total_size': sum(a.nbytes for a in tensors.values())},
          'weight_map': {name: shard for shard, held in shards.items()
                         for name in held}})
    read(str(place))
  return {f'target/{path}': place.name for path, place in wanted.items()}


def config_of(arrays: Arrays) -> T5Config:
  """The config that a checkpoint's shapes tell.

  Args:
    arrays: see `write`.

  Returns:
    The config, in part assumed; see `hugging_face_config.of_shapes`.

  Raises:
    CheckpointError: if it is of no encoder-decoder.
  """
  return hugging_face_config.of_shapes(
      {path: array.shape for path, array in _parameters(arrays).items()},
      'the checkpoint')


def _parameters(arrays: Arrays) -> dict[str, LazyArray]:
  """A checkpoint's parameters by our paths."""
  return {name.removeprefix('target/'): array for name, array in arrays.items()
          if name.startswith('target/')}


def _to_tensors(
    ours: Arrays, wanted: Mapping[str, Place]) -> dict[str, LazyArray]:
  """Parameters under Hugging Face's names; fails if they are not those."""
  for what, paths in (('has no parameter', wanted.keys() - ours.keys()),
                      ('has a parameter', ours.keys() - wanted.keys())):
    if paths:
      raise CheckpointError(
          f'The checkpoint {what} {min(paths)} ({len(paths)} in all), unlike '
          "Hugging Face's T5 of its size; nothing was written. A prompt is no "
          'part of their model: convert the frozen model alone.')
  tensors = {place.name: _oriented(place.name, ours[path], path)
             for path, place in wanted.items()}
  for path, place in wanted.items():
    if (found := tensors[place.name].shape) != place.shape:
      raise CheckpointError(
          f'{path} is {list(ours[path].shape)}; {place.name} would be '
          f'{list(found)}, but is {list(place.shape)} in a T5 of this size.')
  return tensors


def _shards(tensors: Arrays, largest: int) -> dict[str, dict[str, LazyArray]]:
  """The files of a model: from name to the tensors in it."""
  parts: list[dict[str, LazyArray]] = [{}]
  size = 0
  for name, array in tensors.items():
    if parts[-1] and size + array.nbytes > largest:
      parts.append({})
      size = 0
    parts[-1][name] = array
    size += array.nbytes
  if len(parts) == 1:
    return {safetensors_files.SINGLE: parts[0]}
  return {f'model-{i + 1:05d}-of-{len(parts):05d}.safetensors': part
          for i, part in enumerate(parts)}


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes JSON as transformers does."""
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n')
