"""A trained prompt with what must be known to use it again.

    <name>.artifact/prompt.safetensors   one tensor, `prompt`: float32 [P, H]
    <name>.artifact/prompt.json          what it was trained on, with sums
    <name>.artifact/README.md            the same for people: a model card

A prompt means something to one frozen model and one vocabulary only, and any
other takes it without complaint. So prompt.json names both by fingerprints of
their content, which `prompt_files.require_same_base` compares with those of a
run. This detects mistakes and damage; it is no defence against forgery.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
from t5x import fingerprint
from t5x import lazy_arrays
from t5x import safetensors_files
from t5x import untrusted_files
from t5x import whole_writes

Prompt = Float[np.ndarray, 'P H']
Parameters = Mapping[str, Array] | Mapping[str, lazy_arrays.LazyArray]

SUFFIX = '.artifact'
RECORD = 'prompt.json'
LONGEST_RECIPE = 2**20  # Characters.
_TENSORS = 'prompt.safetensors'
_CARD = 'README.md'
_TENSOR = 'prompt'
_VERSION = 1
_EMBEDDINGS = 'token_embedder/embedding'
_SHOWN = 400  # Characters of a file's text in a message.
_SCAN_AXES = (1, 0, -1)  # Of a scanned model; T5X's default comes first.


class ArtifactError(ValueError):
  """A prompt that cannot be used, or not here; the message says why."""


def _shown(text: str) -> str:
  """A text of a file for a message: one line that moves no cursor."""
  plain = ''.join(c if c.isprintable() else '?' for c in text[:_SHOWN])
  return plain if len(text) <= _SHOWN else f'{plain}...'


@dataclasses.dataclass(frozen=True)
class Base:
  """The frozen model that a prompt was trained on.

  Attributes:
    fingerprint: of its parameters, see `base_of`.
    parameters: how many numbers they are.
    embeddings: shape `[V, H]` of the embedding table, if it has T5's name.
    path: the checkpoint that it came from; None if it was initialised.
    step: that checkpoint's step.
  """

  fingerprint: str
  parameters: int
  embeddings: tuple[int, ...] | None = None
  path: str | None = None
  step: int | None = None

  def __str__(self) -> str:
    shape = 'x'.join(map(str, self.embeddings or ())) or 'unknown'
    return (f'{_shown(self.path or "an initialised model")} '
            f'({self.parameters:,} parameters, embeddings {shape}, '
            f'{_shown(self.fingerprint[:12])})')


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """The vocabulary whose tokens a prompt was trained with.

  Attributes:
    kind: its class.
    size: V.
    fingerprint: of what decides its tokens.
  """

  kind: str
  size: int
  fingerprint: str

  def __str__(self) -> str:
    return (f'{_shown(self.kind)} of {self.size:,} '
            f'({_shown(self.fingerprint[:12])})')


@dataclasses.dataclass(frozen=True)
class Parent:
  """The prompt that a prompt began as (SPoT).

  Attributes:
    file: where it was.
    sha256: see `sha256`.
    task: what it was trained on, if that is known.
  """

  file: str
  sha256: str
  task: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """What prompt.json says; None is unknown.

  Attributes:
    shape: P and H.
    sha256: of the values, see `sha256`.
    parameter: the path that it was trained at.
    task: the task or mixture.
    metrics: figures of the evaluation at its step, `<task>/<name>`.
    seed: of the run.
    first_step: absolute step at which the run began.
    step: absolute step of the prompt.
    batch_size: rows of a batch.
    recipe: the run's configuration, as gin reads it.
    parent: the prompt that the run began with.
    base: the frozen model.
    tokenizer: the vocabulary of the inputs.
  """

  shape: tuple[int, ...]
  sha256: str
  parameter: str | None = None
  task: str | None = None
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seed: int | None = None
  first_step: int | None = None
  step: int | None = None
  batch_size: int | None = None
  recipe: str | None = None
  parent: Parent | None = None
  base: Base | None = None
  tokenizer: Tokenizer | None = None

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> Self:
    """From what `json.loads` gives.

    Raises:
      ArtifactError: if a key is unknown, missing or of another type.
    """
    return _made(cls, fields, 'it')


_NESTED = {'parent': Parent, 'base': Base, 'tokenizer': Tokenizer}
_TEXTS = {'sha256', 'parameter', 'task', 'recipe', 'fingerprint', 'path',
          'kind', 'file'}
_SHAPES = {'shape', 'embeddings'}
_LONGEST_TEXT = 4096  # Characters; only a recipe may have more.


def _made(cls: Any, fields: Any, where: str) -> Any:
  """A dataclass from JSON, each field of its type."""
  known = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(fields, dict) or fields.keys() != known.keys():
    found = fields.keys() if isinstance(fields, dict) else set()
    raise ArtifactError(
        f'{where} has other keys than it must have: '
        f'{_shown(", ".join(sorted(known.keys() ^ found)))}')
  values = {}
  for name, value in fields.items():
    optional = known[name].default is None
    if not (value is None and optional):
      values[name] = _value(name, value)
  return cls(**values)


def _value(name: str, value: Any) -> Any:
  """One field, checked."""
  if name in _NESTED:
    return _made(_NESTED[name], value, name)
  if name == 'metrics':
    good = isinstance(value, dict) and all(
        math.isfinite(x) if type(x) is float else _is_integer(x)
        for x in value.values())
  elif name in _SHAPES:
    good = isinstance(value, list) and len(value) == 2 and all(
        _is_integer(size) and size > 0 for size in value)
    value = tuple(value) if good else value
  elif name in _TEXTS:
    good = isinstance(value, str) and (
        len(value) <= (
            LONGEST_RECIPE if name == 'recipe' else _LONGEST_TEXT))
  else:
    good = _is_integer(value) and value >= 0
  if not good:
    raise ArtifactError(f'{name} is {str(value)[:60]!r}')
  return value


def _is_integer(value: Any) -> bool:
  """Whether a value is an integer that arithmetic and printing can hold."""
  return type(value) is int and abs(value) < 2**63


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A prompt and its record."""

  prompt: Prompt
  record: Record


def sha256(prompt: Prompt) -> str:
  """Of the values as float32, row by row, least byte first."""
  return hashlib.sha256(
      np.asarray(prompt).astype('<f4').tobytes(order='C')).hexdigest()


class _Rounded(Mapping[str, Array]):
  """Arrays in bfloat16, read and converted one at a time.

  Those of a scanned model are cut into layers and named as without scanning,
  so that both have the same names and values.
  """

  def __init__(self, arrays: Parameters):
    self._arrays = arrays
    self._places: dict[str, tuple[str, int, int | None]] = {}
    for name, array in arrays.items():
      axis = _layer_axis(name, arrays)
      if axis is None:
        self._places[name] = name, 0, None
        continue
      stack, _, rest = name.split('/', 2)
      for layer in range(array.shape[axis]):
        self._places[f'{stack}/layers_{layer}/{rest}'] = name, axis, layer

  def __getitem__(self, name: str) -> Array:
    source, axis, layer = self._places[name]
    array = self._arrays[source]
    if isinstance(array, lazy_arrays.LazyArray):
      index = [slice(None)] * len(array.shape)
      if layer is not None:
        index[axis] = slice(layer, layer + 1)
      array, layer = jnp.asarray(array.read_slice(tuple(index))), (
          None if layer is None else 0)
    if layer is not None:
      # A traced index: all layers of an array share one compilation.
      array = jax.lax.dynamic_index_in_dim(
          array, np.int32(layer), axis, keepdims=False)
    return array.astype(jnp.bfloat16)

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)


def _layer_axis(name: str, arrays: Parameters) -> int | None:
  """The axis of an array that counts layers; None if it is no stack.

  A scanned model names its stacks `encoder/encoder/...`. The number of layers
  is the size that all of a stack's parameters share on `param_scan_axis`.
  """
  stack = f'{name.partition("/")[0]}/' * 2
  if not name.startswith(stack):
    return None
  shapes = [x.shape for path, x in arrays.items() if path.startswith(stack)]
  if min(map(len, shapes)) < 2:  # The least that is stacked is a scale [H].
    return None
  for axis in _SCAN_AXES:
    if len({shape[axis] for shape in shapes}) == 1:
      return axis % len(arrays[name].shape)
  return None


def base_of(
    parameters: Parameters,
    path: str | None = None,
    step: int | None = None,
) -> Base:
  """Names a frozen model.

  A run trains in float32 and `t5x.infer` restores bfloat16: the values are
  rounded to the latter first, so that both get the same name. So do a scanned
  model and one without scanning.

  Args:
    parameters: its parameters by path, without the prompt; they may be unread.
    path: where they came from.
    step: of that checkpoint.

  Returns:
    The record. The arrays are reduced where they live.

  Raises:
    ArtifactError: if there is no parameter.
  """
  if not parameters:
    raise ArtifactError(
        f'{path or "The model"} has no parameters besides prompts, so there is '
        'no frozen model to name. Give the checkpoint of the whole model.')
  table = parameters.get(_EMBEDDINGS)
  return Base(
      fingerprint.fingerprint(_Rounded(parameters)),
      sum(math.prod(x.shape) for x in parameters.values()),
      None if table is None else tuple(table.shape), path, step)


def tokenizer_of(vocabulary: Any) -> Tokenizer:
  """Names a SeqIO vocabulary by what decides its tokens, not by its file."""
  kind = type(vocabulary).__name__
  content = getattr(vocabulary, 'sp_model', None)
  if content is None:  # No pieces: bytes or numbers as they are.
    content = f'{kind} {vocabulary.vocab_size} {vocabulary.eos_id}'.encode()
  return Tokenizer(
      kind, int(vocabulary.vocab_size), hashlib.sha256(content).hexdigest())


def is_artifact(path: str | pathlib.Path) -> bool:
  """Whether a path is a folder with a prompt.json."""
  return os.path.lexists(os.path.join(path, RECORD))


def write(
    folder: str | pathlib.Path, prompt: Prompt, record: Record) -> None:
  """Writes an artifact: all of it or nothing.

  Args:
    folder: is not there yet; the folder above it is made.
    prompt: finite numbers.
    record: its shape and sum must be those of the prompt.

  Raises:
    ArtifactError: if what was written is not what is read back.
    whole_writes.ExistsError: if the folder is there already.
  """
  with whole_writes.folder(folder) as place:
    safetensors_files.write(
        place / _TENSORS,
        {_TENSOR: np.ascontiguousarray(prompt, np.float32)}, {'format': 'pt'})
    (place / RECORD).write_text(_text(record), encoding='utf-8')
    (place / _CARD).write_text(
        _card(record), encoding='utf-8', errors='replace')
    read(place)


def _text(record: Record) -> str:
  """A record with version and sum, as JSON; there is one way to write it."""
  fields = {'format_version': _VERSION, **dataclasses.asdict(record)}
  plain = json.loads(json.dumps(fields, allow_nan=False))
  plain['record_sha256'] = _sum(plain)
  return json.dumps(plain, indent=1, sort_keys=True) + '\n'


def _sum(fields: Mapping[str, Any]) -> str:
  """SHA-256 of a record's fields."""
  return hashlib.sha256(
      json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read(folder: str | pathlib.Path) -> Artifact:
  """Reads an artifact and checks all of it.

  Args:
    folder: a local folder. Other files in it are left alone.

  Returns:
    The prompt and its record.

  Raises:
    ArtifactError: if something is missing, damaged, too much or unknown.
  """
  try:
    path = untrusted_files.inside(folder, RECORD)
    record = _record(path, untrusted_files.read_json(path))
    tensors = safetensors_files.read(
        untrusted_files.inside(folder, _TENSORS))
    if sorted(tensors) != [_TENSOR]:
      raise ArtifactError(
          f'{_TENSORS} holds {_shown(str(sorted(tensors)[:3]))}; expected '
          'one tensor, '
          f'{_TENSOR!r}')
    tensor = tensors[_TENSOR]
    if tensor.dtype != np.float32 or tensor.shape != record.shape:
      raise ArtifactError(
          f'{_TENSORS} holds {tensor.dtype}{list(tensor.shape)}, {RECORD} says '
          f'float32{list(record.shape)}')
    prompt = tensor.get()
    if sha256(prompt) != record.sha256:
      raise ArtifactError(
          f'the values have another SHA-256 than {RECORD} says')
  except untrusted_files.UntrustedFileError as error:
    raise ArtifactError(str(error)) from error
  except ArtifactError as error:
    raise ArtifactError(
        f'{os.fspath(folder)} is no prompt artifact that can be used: {error}. '
        'Get it again from its source.') from error
  except safetensors_files.CheckpointError as error:
    raise ArtifactError(str(error)) from error
  return Artifact(prompt, record)


def _record(path: pathlib.Path, fields: dict[str, Any]) -> Record:
  """A record, once its version and sum are right."""
  version = fields.get('format_version')
  if version != _VERSION or isinstance(version, bool):
    raise ArtifactError(
        f'{path.name} has the format version {str(version)[:20]!r}, this '
        f'library reads {_VERSION}')
  told = fields.pop('record_sha256', None)
  if told != _sum(fields):
    raise ArtifactError(f'{path.name} has been changed: its sum is another')
  del fields['format_version']
  return Record.from_json(fields)


def differences(
    record: Record,
    parameters: Mapping[str, Array],
    directory: str | None,
    vocabulary: Any = None,
) -> list[str]:
  """How a model and a vocabulary differ from those of a prompt.

  Args:
    record: the prompt's; what it does not know is not compared.
    parameters: the frozen model's, by path.
    directory: the checkpoint that they came from.
    vocabulary: SeqIO vocabulary of the inputs; None does not compare it.

  Returns:
    Halves of sentences that name both.
  """
  found = []
  if vocabulary is not None and record.tokenizer is not None:
    tokenizer = tokenizer_of(vocabulary)
    if tokenizer.fingerprint != record.tokenizer.fingerprint:
      found.append(f'with the vocabulary {record.tokenizer}, but this run has '
                   f'{tokenizer}')
  if record.base is not None:
    base = base_of(parameters, directory)
    if base.fingerprint != record.base.fingerprint:
      found.append(f'on the model {record.base}, but this run has {base}')
  return found


def _card(record: Record) -> str:
  """The model card."""
  rows = {
      'task or mixture': record.task, 'shape': list(record.shape),
      'step': record.step, 'first step': record.first_step,
      'seed': record.seed, 'batch size': record.batch_size,
      'model': record.base, 'vocabulary': record.tokenizer,
      'began as': record.parent and (
          f'{record.parent.file} ({record.parent.sha256[:12]})'),
      'SHA-256': record.sha256,
      **{name: f'{value:.6g}' for name, value in sorted(
          record.metrics.items())}}
  shown = {name: ' '.join(str(value).replace('|', '/').split())
           for name, value in rows.items() if value is not None}
  name = shown.get('task or mixture', 'an unnamed task')
  table = '\n'.join(f'| {key} | {value} |' for key, value in shown.items())
  recipe = '' if record.recipe is None else (
      f'\n## Configuration\n\n```\n{record.recipe.strip()}\n```\n')
  which = ('`prompt.json` names it by a fingerprint of its parameters.'
           if record.base else 'Which one it is was not recorded.')
  return (
      f'---\ntags:\n- prompt-tuning\n---\n# A soft prompt for {name}\n\n'
      'Vectors in front of the embedded input of one frozen model. They mean '
      f'nothing to another\none. {which}\n\n| | |\n|---|---|\n{table}\n\n'
      'To start another prompt from it, or to evaluate or infer with it, give '
      'this folder as\n`PROMPT_FILE`. The tensor alone is in '
      f'`{_TENSORS}`.\n{recipe}')
