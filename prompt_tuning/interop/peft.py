"""Adapters of Hugging Face PEFT that are a prompt, in and out.

    adapter_config.json           what the prompt is, and of which size
    adapter_model.safetensors     one tensor, prompt_embeddings [n P, H]

`num_transformer_submodules` is n: 1, or 2, which PEFT takes by default for
encoder-decoders. It uses the first P rows, in front of the encoder's input, and
gives the decoder nothing; the other P are never used, neither in training nor
in generation, and are left out here. An adapter of ours has n = 1.

P_TUNING saves the output of the network that made its prompt, not that network,
so that it reads as PROMPT_TUNING does. PEFT puts a prompt where
`train.prompts.prefix_prompt` does: in front of the input, with a mask of ones.
"""

from collections.abc import Mapping
import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np
from t5x import safetensors_files
from t5x import untrusted_files
from t5x import whole_writes

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'
TENSOR = 'prompt_embeddings'
_PICKLED = 'adapter_model.bin'

TASK_TYPES = ('SEQ_2_SEQ_LM', 'CAUSAL_LM')
_READ = ('PROMPT_TUNING', 'P_TUNING')
_OTHERS = {
    'PREFIX_TUNING': 'its vectors are keys and values of every layer',
    'MULTITASK_PROMPT_TUNING': (
        'its prompt is a product with a matrix per task, and goes into the '
        'decoder as well'),
    'CPT': 'its values are added to the embeddings of given tokens',
    'CARTRIDGE': 'its vectors are keys and values of every layer',
}


class AdapterError(ValueError):
  """An adapter that is no prompt, or a damaged one; the message says why."""


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A prompt out of an adapter.

  Attributes:
    prompt: the rows that PEFT uses, in the file's dtype.
    peft_type: what made it.
    base_model: name of the model that it belongs to, as far as it says so.
    task_type: 'SEQ_2_SEQ_LM' or 'CAUSAL_LM'.
    unused_rows: rows of the file that PEFT never uses.
  """

  prompt: Float[np.ndarray, 'P H']
  peft_type: str
  base_model: str | None
  task_type: str
  unused_rows: int


def is_adapter(path: str | pathlib.Path) -> bool:
  """Whether a path is a folder with an adapter_config.json."""
  return os.path.lexists(os.path.join(path, CONFIG))


def read(folder: str | pathlib.Path) -> Adapter:
  """Reads an adapter and checks all of it; nothing in it is run.

  Args:
    folder: a local folder.

  Returns:
    The prompt.

  Raises:
    AdapterError: if it is no prompt, is damaged, or config and tensor do not
      agree.
  """
  try:
    path = untrusted_files.inside(folder, CONFIG)
    if not path.is_file():
      raise AdapterError(
          f'{os.fspath(folder)} has no {CONFIG}; expected the folder that '
          'PeftModel.save_pretrained wrote.')
    config = untrusted_files.read_json(path)
    _require_prompt(path, config)
    tensors = safetensors_files.read(_tensor_file(folder))
    if list(tensors) != [TENSOR]:
      raise AdapterError(
          f'{pathlib.Path(folder, TENSORS)} holds {sorted(tensors)[:3]}; '
          f'expected one tensor, {TENSOR!r}. What else was trained would be '
          'lost.')
    return _adapter(path, config, tensors[TENSOR])
  except (untrusted_files.UntrustedFileError,
          safetensors_files.CheckpointError) as error:
    raise AdapterError(str(error)) from error


def _require_prompt(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Fails on a config of something else than a prompt."""
  options = config.get('tokenizer_kwargs') or {}
  if (config.get('auto_map') or config.get('auto_mapping')
      or not isinstance(options, dict) or options.get('trust_remote_code')):
    raise AdapterError(
        f'{path} names code to load (auto_map, auto_mapping or '
        'trust_remote_code), which is never done. If the adapter is to be '
        'trusted, set task_type and remove those keys.')
  kind = str(config.get('peft_type'))
  if kind not in _READ:
    reason = f' ({_OTHERS[kind]})' if kind in _OTHERS else ''
    raise AdapterError(
        f'{path}: peft_type is {kind[:40]!r}, which is no prompt in front '
        f'of an input{reason}; expected {" or ".join(_READ)}.')
  if config.get('task_type') not in TASK_TYPES:
    raise AdapterError(
        f'{path}: task_type is {str(config.get("task_type"))[:40]!r}; expected '
        f'{" or ".join(TASK_TYPES)}.')
  for name in (
      'num_virtual_tokens', 'token_dim', 'num_transformer_submodules'):
    value = config.get(name)
    if type(value) is not int or value < 1:
      raise AdapterError(
          f'{path}: {name} is {str(value)[:40]!r}; expected a positive whole '
          'number.')
  if config['num_transformer_submodules'] > 2:
    raise AdapterError(
        f'{path}: num_transformer_submodules is '
        f'{str(config["num_transformer_submodules"])[:40]}; expected 1, or 2 '
        'of an encoder-decoder.')
  if config.get('modules_to_save'):
    raise AdapterError(
        f'{path}: modules_to_save is {str(config["modules_to_save"])[:80]}; '
        'these were trained with the prompt, which is not the same without '
        'them.')


def _tensor_file(folder: str | pathlib.Path) -> pathlib.Path:
  """The file of tensors, which must not be pickled."""
  path = untrusted_files.inside(folder, TENSORS)
  if path.is_file():
    return path
  if pathlib.Path(folder, _PICKLED).exists():
    raise AdapterError(
        f'{os.fspath(folder)} has {_PICKLED}, which is pickled and never '
        f'loaded, but no {TENSORS}. Where peft is installed and the adapter '
        'is trusted, convert it: peft.PeftModel.from_pretrained(model, folder)'
        '.save_pretrained(other_folder).')
  raise AdapterError(
      f'{os.fspath(folder)} has {CONFIG}, but no {TENSORS}. Copy both.')


def _adapter(
    path: pathlib.Path, config: Mapping[str, Any],
    tensor: safetensors_files.LazyArray,
) -> Adapter:
  """The rows that PEFT uses."""
  length, width = config['num_virtual_tokens'], config['token_dim']
  copies = config['num_transformer_submodules']
  if tensor.shape != (copies * length, width):
    raise AdapterError(
        f'{path.parent / TENSORS}: {TENSOR} is {list(tensor.shape)}, but '
        f'{CONFIG} says {copies} x {length} vectors of width {width}.')
  if not np.issubdtype(tensor.dtype, np.inexact) and (
      tensor.dtype.name != 'bfloat16'):
    raise AdapterError(
        f'{path.parent / TENSORS}: {TENSOR} is {tensor.dtype}; expected '
        'floating-point numbers.')
  unused = (copies - 1) * length
  if unused:
    logging.info(
        '%s: the first %d of %d rows are the prompt of the encoder; PEFT uses '
        'no other.', path.parent, length, copies * length)
  base = config.get('base_model_name_or_path')
  return Adapter(
      tensor.read_slice((slice(0, length), slice(None))), config['peft_type'],
      base if isinstance(base, str) else None, config['task_type'], unused)


def write(
    folder: str | pathlib.Path,
    prompt: Float[np.ndarray, 'P H'],
    *,
    base_model: str | None = None,
    task_type: str = 'SEQ_2_SEQ_LM',
) -> None:
  """Writes an adapter that `PeftModel.from_pretrained` loads.

  Args:
    folder: is not there yet; the folder above it is made.
    prompt: finite numbers; they are written as float32.
    base_model: name of the model that it belongs to, which PEFT's AutoPeftModel
      asks for.
    task_type: one of `TASK_TYPES`.

  Raises:
    AdapterError: if the prompt is no finite matrix.
    whole_writes.ExistsError: if the folder is there already.
  """
  if task_type not in TASK_TYPES:
    raise AdapterError(
        f'task_type is {task_type!r}; expected {" or ".join(TASK_TYPES)}.')
  prompt = np.ascontiguousarray(prompt, np.float32)
  if prompt.ndim != 2 or not prompt.size or not np.isfinite(prompt).all():
    raise AdapterError(
        f'{folder}: the prompt {list(prompt.shape)} is no matrix of finite '
        'numbers.')
  with whole_writes.folder(folder) as place:
    safetensors_files.write(
        place / TENSORS, {TENSOR: prompt}, {'format': 'pt'})
    (place / CONFIG).write_text(json.dumps(
        _config(prompt.shape, base_model, task_type), indent=2,
        sort_keys=True), encoding='utf-8')
    read(place)


def _config(
    shape: tuple[int, ...], base_model: str | None, task_type: str
) -> dict[str, Any]:
  """What PEFT must know; it takes the rest from the model."""
  return {
      'base_model_name_or_path': base_model,
      'inference_mode': True,
      'num_transformer_submodules': 1,
      'num_virtual_tokens': shape[0],
      'peft_type': 'PROMPT_TUNING',
      'prompt_tuning_init': 'RANDOM',
      'task_type': task_type,
      'token_dim': shape[1],
  }
