"""Writes parity.npz: tiny random T5 models of Hugging Face, and what they do.

Run it where the `parity` extra is installed:

    python tests/golden/make_parity.py

Everything in the file is the work of transformers and torch alone. The weights
stand under our parameter paths; `_names` says which of theirs each one is.
"""

from collections.abc import Mapping
import pathlib

import numpy as np
import torch
import transformers

SEED = 0
# Rows of inputs and targets, without padding; the prompt is PROMPT_LENGTH long.
INPUT_LENGTHS = (26, 11, 19, 4)
TARGET_LENGTHS = (9, 22, 15, 3)
PROMPT_LENGTH = 4
VOCAB_SIZE = 64
IGNORED = -100  # The label that torch leaves out of the loss.

_SIZES = {
    'vocab_size': VOCAB_SIZE, 'd_model': 16, 'd_ff': 24, 'num_layers': 2,
    'num_decoder_layers': 3, 'decoder_start_token_id': 0, 'pad_token_id': 0,
    # Large enough that what is attended to decides what is decoded.
    'initializer_factor': 1.5,
    # Both stacks have exact, logarithmic and clipped buckets at these lengths.
    'relative_attention_num_buckets': 8, 'relative_attention_max_distance': 20,
}
# As in T5 1.1 small, the heads of the first are narrower than the model.
MODELS = {
    't5_1_1': {**_SIZES, 'feed_forward_proj': 'gated-gelu', 'num_heads': 3,
               'd_kv': 4, 'tie_word_embeddings': False},
    't5_1_0': {**_SIZES, 'feed_forward_proj': 'relu', 'num_heads': 4,
               'd_kv': 4, 'tie_word_embeddings': True},
}
# Their name of a block, our name of its norm, our name of the block.
_BLOCKS = {
    'encoder': (
        ('SelfAttention', 'pre_attention_layer_norm', 'attention'),
        ('DenseReluDense', 'pre_mlp_layer_norm', 'mlp')),
    'decoder': (
        ('SelfAttention', 'pre_self_attention_layer_norm', 'self_attention'),
        ('EncDecAttention', 'pre_cross_attention_layer_norm',
         'encoder_decoder_attention'),
        ('DenseReluDense', 'pre_mlp_layer_norm', 'mlp')),
}
_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_GATED = {'wi_0': 'wi_0', 'wi_1': 'wi_1', 'wo': 'wo'}
_PLAIN = {'wi': 'wi', 'wo': 'wo'}


def make(seed: int) -> dict[str, dict[str, np.ndarray]]:
  """Every model's weights, inputs and outputs, and the published buckets."""
  return {'buckets': _buckets(),
          **{name: _record(name, seed) for name in MODELS}}


def _names(name: str) -> dict[str, str]:
  """Our parameter path to their parameter name."""
  sizes = MODELS[name]
  mlp = _GATED if name == 't5_1_1' else _PLAIN
  names = {'token_embedder/embedding': 'shared.weight'}
  if not sizes['tie_word_embeddings']:
    names['decoder/logits_dense/kernel'] = 'lm_head.weight'
  for stack, count in (('encoder', sizes['num_layers']),
                       ('decoder', sizes['num_decoder_layers'])):
    names[f'{stack}/{stack}_norm/scale'] = f'{stack}.final_layer_norm.weight'
    names[f'{stack}/relpos_bias/rel_embedding'] = (
        f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight')
    for i in range(count):
      for j, (theirs, norm, ours) in enumerate(_BLOCKS[stack]):
        path, prefix = f'{stack}/layers_{i}', f'{stack}.block.{i}.layer.{j}'
        names[f'{path}/{norm}/scale'] = f'{prefix}.layer_norm.weight'
        for a, b in (mlp if ours == 'mlp' else _ATTENTION).items():
          names[f'{path}/{ours}/{a}/kernel'] = f'{prefix}.{theirs}.{b}.weight'
  return names


def _random_model(name: str) -> transformers.T5ForConditionalGeneration:
  """A model whose norms, biases and output table are random as well."""
  config = transformers.T5Config(**MODELS[name], attn_implementation='eager')
  model = transformers.T5ForConditionalGeneration(config).eval()
  if not MODELS[name]['tie_word_embeddings']:
    # transformers 5 ties the tables of a new T5 1.1, which has two.
    model.lm_head.weight = torch.nn.Parameter(
        torch.randn(VOCAB_SIZE, config.d_model))
  with torch.no_grad():
    for path, parameter in model.named_parameters():
      # Norms of both signs also keep a tied model from repeating its input.
      if 'layer_norm' in path or 'relative_attention_bias' in path:
        parameter.normal_()
  return model


def _params(
    name: str, model: transformers.T5ForConditionalGeneration
) -> dict[str, np.ndarray]:
  """All weights under our paths, in our layout."""
  theirs, names = dict(model.named_parameters()), _names(name)
  if set(theirs) != set(names.values()):
    raise ValueError(
        f'{name}: no path for {set(theirs) ^ set(names.values())}.')
  params = {}
  for path, their_name in names.items():
    value = theirs[their_name].detach().numpy()
    # Their matrices are [out, in] and [buckets, heads].
    params[path] = value if path.startswith('token_embedder') else value.T
  return params


def _ragged(lengths: tuple[int, ...]) -> torch.Tensor:
  """Random ids from 2, each row padded with zeros after its length."""
  tokens = torch.randint(2, VOCAB_SIZE, (len(lengths), max(lengths)))
  places = torch.arange(max(lengths))[None]
  return torch.where(places < torch.tensor(lengths)[:, None], tokens, 0)


def _teacher_forced(
    model: transformers.T5ForConditionalGeneration,
    embedded: torch.Tensor,
    mask: torch.Tensor,
    targets: torch.Tensor,
) -> dict[str, torch.Tensor]:
  """Encoder states, logits and each row's summed loss; padding is zero."""
  labels = torch.where(targets > 0, targets, IGNORED)
  out = model(inputs_embeds=embedded, attention_mask=mask, labels=labels)
  losses = torch.nn.functional.cross_entropy(
      out.logits.transpose(1, 2), labels, ignore_index=IGNORED,
      reduction='none')
  return {
      'encoded': out.encoder_last_hidden_state * mask[..., None],
      'logits': out.logits * (targets > 0)[..., None],
      'row_losses': losses.sum(axis=1),
  }


def _greedy(
    model: transformers.T5ForConditionalGeneration,
    embedded: torch.Tensor,
    mask: torch.Tensor,
    eos_id: int,
) -> torch.Tensor:
  """Tokens without the start token, as many as the longest target."""
  # transformers 5.23 makes a cache of as many layers as the encoder has, and
  # the decoder has more.
  tokens = model.generate(
      inputs_embeds=embedded, attention_mask=mask, do_sample=False,
      num_beams=1, max_new_tokens=max(TARGET_LENGTHS), eos_token_id=eos_id,
      pad_token_id=0, use_cache=False)
  return tokens[:, 1:]


def _some_rows_end(endless: torch.Tensor) -> int:
  """A token at which some rows end and some do not, at the most places."""
  merits = {}
  for token in set(endless.flatten().tolist()) - {0}:
    found = [row.index(token) for row in endless.tolist() if token in row]
    merits[token] = (len(found) < len(endless), len(set(found)), sum(found))
  return max(merits, key=merits.get)


def _record(name: str, seed: int) -> dict[str, np.ndarray]:
  """One model's weights, inputs and outputs."""
  torch.manual_seed(seed)
  model = _random_model(name)
  inputs, targets = _ragged(INPUT_LENGTHS), _ragged(TARGET_LENGTHS)
  embedded, mask = model.shared(inputs), (inputs > 0).long()
  plain = _teacher_forced(model, embedded, mask, targets)

  prompt = torch.randn(PROMPT_LENGTH, model.config.d_model, requires_grad=True)
  rows = len(inputs)
  longer = torch.cat([prompt.expand(rows, -1, -1), embedded], dim=1)
  longer_mask = torch.cat(
      [torch.ones(rows, PROMPT_LENGTH, dtype=torch.long), mask], dim=1)
  prompted = _teacher_forced(model, longer, longer_mask, targets)
  gradient, = torch.autograd.grad(prompted['row_losses'].sum(), prompt)

  endless = _greedy(model, longer, longer_mask, eos_id=VOCAB_SIZE)
  eos_id = _some_rows_end(endless)
  arrays = {
      'encoder_input_tokens': inputs,
      'decoder_target_tokens': targets,
      'decoder_input_tokens': model.prepare_decoder_input_ids_from_labels(
          targets),
      **plain,
      'prompt': prompt,
      'prompted_logits': prompted['logits'],
      'prompted_row_losses': prompted['row_losses'],
      'prompt_gradient': gradient,
      'eos_id': torch.tensor(eos_id),
      'greedy_tokens': _greedy(model, longer, longer_mask, eos_id=eos_id),
  }
  return {**{f'params/{path}': x for path, x in _params(name, model).items()},
          **{key: _narrow(x) for key, x in arrays.items()}}


def _buckets() -> dict[str, np.ndarray]:
  """The bucket of every distance in the published sizes, 32 and 128."""
  bucket = transformers.models.t5.modeling_t5.T5Attention
  distances = torch.arange(-200, 201)
  found = {
      'relative_position': distances,
      **{key: bucket._relative_position_bucket(
          distances, bidirectional=bidirectional, num_buckets=32,
          max_distance=128)
         for key, bidirectional in (('encoder', True), ('decoder', False))},
  }
  return {key: _narrow(x) for key, x in found.items()}


def _narrow(x: torch.Tensor) -> np.ndarray:
  """As numpy, integers as int32."""
  x = x.detach().numpy()
  return x if x.dtype == np.float32 else x.astype(np.int32)


def save(path: pathlib.Path, made: Mapping[str, Mapping[str, np.ndarray]]):
  """One flat file, `model/array`, and the versions that made it."""
  np.savez_compressed(
      path,
      made_with=np.array(
          f'torch {torch.__version__}, '
          f'transformers {transformers.__version__}, seed {SEED}'),
      **{f'{name}/{key}': x
         for name, arrays in made.items() for key, x in arrays.items()})


if __name__ == '__main__':
  torch.set_num_threads(1)  # Sums in one order: the same file every time.
  save(pathlib.Path(__file__).with_name('parity.npz'), make(SEED))
