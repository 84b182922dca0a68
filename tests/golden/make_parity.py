"""Writes parity.npz: tiny random T5s of Hugging Face, and what they do.

Run it where the `parity` extra is installed:

    python tests/golden/make_parity.py

Everything in the file is the work of transformers, PEFT and torch alone. The
weights stand under our parameter paths; `_names` says which of theirs each one
is. They are whole multiples of 1/64, which float16 holds exactly.

Every variant has two batches of one shape, `padded` and `full`, and three
sides: `plain` is the model itself, `peft_1` and `peft_2` are PEFT's prompt
tuning with one and with two `num_transformer_submodules`.

Beam search means two things. transformers divides the log probability of a
hypothesis of L tokens by `L^length_penalty`, T5X by `((5 + L) / 6)^alpha`: the
two are one for all L only where both exponents are 0. transformers lets a
hypothesis end only with one of the `num_beams` best of the `2 * num_beams`
continuations, T5X with any of them; and at the last step transformers ends
what is left, T5X only where nothing has ended. `early_stopping=True` stops
before the best is known; False and 'never' are T5X's rule if `length_penalty`
is 0. So it is 0 here, and `beam_comparable` marks the best hypotheses of a row
as long as they ended by themselves and are better than any that transformers
did not let end: these are the best of T5X's too. Where nothing ends (`endless`)
all beams of both are the same.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any
import warnings

import numpy as np
import peft
import torch
import transformers

SEED = 0
# Rows of inputs and targets, without padding; the prompt is PROMPT_LENGTH long.
INPUT_LENGTHS = (26, 11, 19, 4)
TARGET_LENGTHS = (9, 22, 15, 3)
STEPS = max(TARGET_LENGTHS)  # As many tokens are decoded.
TEXTS = (('Zwölf Boxkämpfer jagen!', 'twelve'), ('¿qué?', '日本語 12345 wxyz.'),
         ('a\tb\n\nc  d e f g', 'naïve café ✓'), ('abc', 'ok'))
PROMPT_LENGTH = 4
BEAMS = 4
TRIED_ENDS = 12  # Tokens that are tried as the end of hypotheses.
ENOUGH = 12  # Comparable hypotheses; from here on their lengths count.
TRAIN_STEPS = 5
ADAFACTOR_STEP = 1_100_000  # The absolute step at which T5X starts a prompt.
IGNORED = -100  # The label that torch leaves out of the loss.

_SIZES = {
    'vocab_size': 64, 'd_model': 16, 'd_ff': 24, 'num_layers': 2,
    'num_decoder_layers': 2, 'num_heads': 4, 'd_kv': 4,
    'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False,
    'decoder_start_token_id': 0, 'pad_token_id': 0, 'eos_token_id': 1,
    # Large enough that what is attended to decides what is decoded.
    'initializer_factor': 1.5,
    # Both stacks have exact, logarithmic and clipped buckets at these lengths.
    'relative_attention_num_buckets': 8, 'relative_attention_max_distance': 20,
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """One architecture.

  Attributes:
    family: `T5` or `MT5`, whose classes of transformers are used.
    changes: settings in which it differs from `_SIZES`.
  """

  family: str
  changes: Mapping[str, Any]

  @property
  def settings(self) -> dict[str, Any]:
    """What its `config.json` would say."""
    return {**_SIZES, **self.changes}


# As in the published ones: heads narrower than the model (T5 1.1 small) and
# wider (T5 1.0 11B), decoders that are deeper and shallower than encoders.
VARIANTS = {
    't5_1_0': Variant('T5', {
        'feed_forward_proj': 'relu', 'tie_word_embeddings': True,
        'num_heads': 5, 'num_decoder_layers': 3}),
    't5_1_1': Variant('T5', {'num_heads': 3, 'num_decoder_layers': 3}),
    'mt5': Variant('MT5', {'tokenizer_class': 'T5Tokenizer'}),
    'byt5': Variant('T5', {
        'vocab_size': 384, 'num_layers': 3, 'num_decoder_layers': 1,
        'tokenizer_class': 'ByT5Tokenizer'}),
    # With what else the files of the hub say.
    'flan': Variant('T5', {
        'dense_act_fn': 'gelu_new', 'is_gated_act': True, 'n_positions': 512,
        'relative_attention_num_buckets': 32,
        'relative_attention_max_distance': 128}),
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

Model = transformers.PreTrainedModel
Batch = dict[str, torch.Tensor]
Arrays = dict[str, torch.Tensor]


def make(seed: int) -> dict[str, dict[str, np.ndarray]]:
  """Every variant's weights, inputs and outputs, and the published buckets."""
  torch.set_num_threads(1)  # Sums in one order: the same arrays every time.
  return {
      'buckets': {key: _narrow(x) for key, x in _buckets().items()},
      'bytes': {'texts': np.array([x for pair in TEXTS for x in pair])},
      **{name: _record(variant, seed) for name, variant in VARIANTS.items()},
  }


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
  """Our parameter path to their parameter name."""
  mlp = _GATED if settings['feed_forward_proj'] == 'gated-gelu' else _PLAIN
  names = {'token_embedder/embedding': 'shared.weight'}
  if not settings['tie_word_embeddings']:
    names['decoder/logits_dense/kernel'] = 'lm_head.weight'
  for stack, count in (('encoder', settings['num_layers']),
                       ('decoder', settings['num_decoder_layers'])):
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


def _random_model(variant: Variant) -> Model:
  """A model whose norms, biases and output table are random as well."""
  settings = variant.settings
  config = getattr(transformers, f'{variant.family}Config')(
      **settings, attn_implementation='eager')
  model = getattr(
      transformers, f'{variant.family}ForConditionalGeneration')(config).eval()
  if not settings['tie_word_embeddings']:
    # transformers 5 ties the tables of a new T5 1.1, which has two.
    model.lm_head.weight = torch.nn.Parameter(
        torch.randn(config.vocab_size, config.d_model))
  with torch.no_grad():
    for path, parameter in model.named_parameters():
      # Norms of both signs also keep a tied model from repeating its input.
      if 'layer_norm' in path or 'relative_attention_bias' in path:
        parameter.normal_()
      parameter.copy_(torch.round(parameter * 64) / 64)
  return model


def _params(
    settings: Mapping[str, Any], model: Model) -> dict[str, np.ndarray]:
  """All weights under our paths, in our layout."""
  theirs, names = dict(model.named_parameters()), _names(settings)
  if set(theirs) != set(names.values()):
    raise ValueError(f'No path for {set(theirs) ^ set(names.values())}.')
  params = {}
  for path, their_name in names.items():
    value = theirs[their_name].detach().numpy()
    narrow = value.astype(np.float16)
    if not np.array_equal(narrow, value):
      raise ValueError(f'{path} is not exact in float16.')
    # Their matrices are [out, in] and [buckets, heads].
    params[path] = narrow if path.startswith('token_embedder') else narrow.T
  return params


def _batches(settings: Mapping[str, Any], model: Model) -> dict[str, Batch]:
  """A padded batch and a full one of the same shape."""
  tokens = {
      'padded': [_ragged(lengths, settings['vocab_size'])
                 for lengths in (INPUT_LENGTHS, TARGET_LENGTHS)],
      'full': [torch.randint(2, settings['vocab_size'], (len(lengths),
                                                         max(lengths)))
               for lengths in (INPUT_LENGTHS, TARGET_LENGTHS)]}
  if settings.get('tokenizer_class') == 'ByT5Tokenizer':
    tokenizer = transformers.ByT5Tokenizer()
    tokens['padded'] = [
        tokenizer(list(texts), padding='max_length', max_length=max(lengths),
                  return_tensors='pt').input_ids
        for texts, lengths in zip(
            zip(*TEXTS, strict=True), (INPUT_LENGTHS, TARGET_LENGTHS),
            strict=True)]
  return {
      name: {
          'encoder_input_tokens': inputs,
          'decoder_target_tokens': targets,
          'decoder_input_tokens': model.prepare_decoder_input_ids_from_labels(
              targets)}
      for name, (inputs, targets) in tokens.items()}


def _ragged(lengths: tuple[int, ...], vocab_size: int) -> torch.Tensor:
  """Random ids from 2, each row padded with zeros after its length."""
  tokens = torch.randint(2, vocab_size, (len(lengths), max(lengths)))
  places = torch.arange(max(lengths))[None]
  return torch.where(places < torch.tensor(lengths)[:, None], tokens, 0)


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
  """What a call takes; a full batch needs no mask."""
  tokens = batch['encoder_input_tokens']
  masks = {} if tokens.all() else {'attention_mask': (tokens > 0).long()}
  return {'input_ids': tokens, **masks}


def _labels(batch: Batch) -> torch.Tensor:
  """Targets without their padding."""
  targets = batch['decoder_target_tokens']
  return torch.where(targets > 0, targets, IGNORED)


def _teacher_forced(model: Callable[..., Any], batch: Batch) -> Arrays:
  """Their own loss, each row's summed loss, and states at real places.

  The large ones are left out where others stand for them, which keeps the file
  small: states of a full batch, and logits where there is a prompt.
  """
  labels = _labels(batch)
  out = model(**_inputs(batch), labels=labels)
  losses = torch.nn.functional.cross_entropy(
      out.logits.transpose(1, 2), labels, ignore_index=IGNORED,
      reduction='none')
  found = {'loss': out.loss, 'row_losses': losses.sum(axis=1)}
  inputs = batch['encoder_input_tokens']
  if not inputs.all():
    encoded = out.encoder_last_hidden_state
    # With a prompt there are more places, all of them real.
    front = torch.ones(
        len(inputs), encoded.shape[1] - inputs.shape[1], dtype=torch.bool)
    found['encoded'] = encoded[torch.cat([front, inputs > 0], axis=1)]
    if not front.numel():
      found['logits'] = out.logits[labels != IGNORED]
  return found


def _generate(
    model: Any, batch: Batch, eos_id: int, beams: int = 1, returned: int = 1
) -> transformers.utils.ModelOutput:
  """Tokens `[B * returned, S]` without the start token, zeros after the end."""
  # transformers 5.23 makes a cache of as many layers as the encoder has, and
  # the decoder may have more.
  penalty = {} if beams == 1 else {
      'length_penalty': 0.0, 'early_stopping': 'never'}
  out = model.generate(
      **_inputs(batch), **penalty, do_sample=False, num_beams=beams,
      num_return_sequences=returned, max_new_tokens=STEPS, eos_token_id=eos_id,
      pad_token_id=0, use_cache=False, return_dict_in_generate=True,
      output_scores=True)
  tokens = out.sequences[:, 1:]
  ended = (tokens == eos_id).long().cumsum(axis=1) - (tokens == eos_id).long()
  tokens = torch.where(ended > 0, 0, tokens)
  out.tokens = torch.nn.functional.pad(tokens, (0, STEPS - tokens.shape[1]))
  return out


def _some_rows_end(endless: torch.Tensor) -> int:
  """A token at which some rows end and some do not, at the most places."""
  merits = {}
  for token in set(endless.flatten().tolist()) - {0}:
    found = [row.index(token) for row in endless.tolist() if token in row]
    merits[token] = (len(found) < len(endless), len(set(found)), sum(found))
  return max(merits, key=merits.get)


def _late_ends(scores: tuple[torch.Tensor, ...], eos_id: int) -> torch.Tensor:
  """The best hypothesis of each row that transformers did not let end.

  Args:
    scores: at every step the log probabilities after every beam, `[B * n, V]`.
    eos_id: ends a hypothesis.

  Returns:
    Log probabilities `[B]`; minus infinity where there is none.
  """
  rows, vocab = scores[0].shape[0] // BEAMS, scores[0].shape[1]
  running = torch.full((rows, BEAMS), -1e9)
  running[:, 0] = 0
  late = torch.full((rows,), -torch.inf)
  for log_probs in scores:
    total = log_probs.reshape(rows, BEAMS, vocab) + running[..., None]
    best, index = total.flatten(1).topk(2 * BEAMS)
    ends = index % vocab == eos_id
    late = late.maximum(
        best.masked_fill(~ends, -torch.inf)[:, BEAMS:].amax(axis=1))
    running = best.masked_fill(ends, -1e9).topk(BEAMS).values
  return late


def _beams(model: Any, batch: Batch, eos_id: int) -> Arrays:
  """Each row's hypotheses, best first, and whether T5X means the same."""
  out = _generate(model, batch, eos_id, BEAMS, BEAMS)
  tokens = out.tokens.reshape(-1, BEAMS, STEPS)
  scores = out.sequences_scores.reshape(-1, BEAMS)
  better = scores > _late_ends(out.scores, eos_id)[:, None]
  ended = (tokens == eos_id).any(axis=2)
  return {
      'beam_tokens': tokens, 'beam_scores': scores,
      'beam_comparable': (ended & better).long().cumprod(axis=1).bool()}


def _decoded(model: Any, batches: Mapping[str, Batch]) -> Arrays:
  """What is decoded greedily and with beams, with ends and without any."""
  nothing = model.config.vocab_size  # No token ends a row.
  padded = batches['padded']
  endless = _generate(model, padded, nothing, BEAMS, BEAMS)
  greedy_eos = _some_rows_end(_generate(model, padded, nothing).tokens)

  def merit(token: int) -> tuple[int, int, int]:
    lengths = []
    for batch in batches.values():
      best = _beams(model, batch, token)
      ended = (best['beam_tokens'] != 0).sum(axis=2)[best['beam_comparable']]
      lengths += ended.tolist()
    return min(len(lengths), ENOUGH), len(set(lengths)), sum(lengths)

  tokens, counts = endless.tokens[endless.tokens > 0].unique(return_counts=True)
  tried = tokens[counts.argsort(descending=True, stable=True)[:TRIED_ENDS]]
  beam_eos = max(tried.tolist(), key=merit)
  rows = len(padded['encoder_input_tokens'])
  found = {
      'eos_id/greedy': torch.tensor(greedy_eos),
      'eos_id/beam': torch.tensor(beam_eos),
      'padded/endless_tokens': endless.tokens.reshape(rows, BEAMS, -1),
      'padded/endless_scores': endless.sequences_scores.reshape(rows, BEAMS)}
  for name, batch in batches.items():
    found[f'{name}/greedy_tokens'] = _generate(model, batch, greedy_eos).tokens
    for key, x in _beams(model, batch, beam_eos).items():
      found[f'{name}/{key}'] = x
  return found


def _peft(model: Model, prompt: torch.Tensor, submodules: int) -> Any:
  """PEFT's prompt tuning; what further submodules get is random."""
  with warnings.catch_warnings():
    # PEFT 0.21 asks transformers 5.23 for a name that is about to go.
    warnings.filterwarnings('ignore', '`is_gradient_checkpointing` is depre')
    wrapped = peft.get_peft_model(model, peft.PromptTuningConfig(
        task_type='SEQ_2_SEQ_LM', num_virtual_tokens=len(prompt),
        num_transformer_submodules=submodules))
  with torch.no_grad():
    _table(wrapped)[:len(prompt)] = prompt
  return wrapped


def _table(wrapped: Any) -> torch.nn.Parameter:
  """All that PEFT trains, `[submodules * P, H]`."""
  return wrapped.prompt_encoder['default'].embedding.weight


def _gradients(wrapped: Any, batch: Batch) -> Arrays:
  """Of PEFT's own loss: at the prompt, and the largest at the other rows."""
  loss = wrapped(**_inputs(batch), labels=_labels(batch)).loss
  gradient, = torch.autograd.grad(loss, _table(wrapped))
  found = {'gradient': gradient[:PROMPT_LENGTH]}
  if len(gradient) > PROMPT_LENGTH:
    found['unused_gradient'] = gradient[PROMPT_LENGTH:].abs().max()
  return found


def _flat_adafactor(table: torch.nn.Parameter) -> transformers.Adafactor:
  """T5X's recipe for prompts shorter than 128, which it does not factor.

  transformers factors whatever has two axes, so it gets the prompt as one; the
  absolute step is put into its state. It multiplies its weight decay by the
  learning rate, T5X does not.
  """
  flat = torch.nn.Parameter(table.detach().flatten())  # Shares the memory.
  optimizer = transformers.Adafactor(
      [flat], lr=0.03, relative_step=False, scale_parameter=False,
      weight_decay=1e-3 / 0.03)
  optimizer.state[flat] = {
      'step': ADAFACTOR_STEP, 'exp_avg_sq': torch.zeros_like(flat), 'RMS': 0}

  def flatten_gradient(*unused):
    flat.grad = table.grad.flatten()

  optimizer.register_step_pre_hook(flatten_gradient)
  return optimizer


OPTIMIZERS = {
    'sgd': lambda table: torch.optim.SGD([table], lr=0.1),
    'adam': lambda table: torch.optim.Adam([table], lr=0.1),
    'adafactor': _flat_adafactor,
    'factored_adafactor': lambda table: transformers.Adafactor(
        [table], lr=0.1, relative_step=False, scale_parameter=True),
}


def _trained(
    model: Model, prompt: torch.Tensor, batches: list[Batch]) -> Arrays:
  """The loss before and the prompt after every step, per optimiser."""
  found = {}
  for name, make_optimizer in OPTIMIZERS.items():
    wrapped = _peft(model, prompt, submodules=1)
    table = _table(wrapped)
    optimizer = make_optimizer(table)
    losses, prompts = [], []
    for i in range(TRAIN_STEPS):
      batch = batches[i % len(batches)]
      table.grad = None
      loss = wrapped(**_inputs(batch), labels=_labels(batch)).loss
      loss.backward()
      optimizer.step()
      losses.append(loss.detach())
      prompts.append(table.detach().clone())
    found[f'{name}/losses'] = torch.stack(losses)
    found[f'{name}/prompts'] = torch.stack(prompts)
  return found


def _record(variant: Variant, seed: int) -> dict[str, np.ndarray]:
  """One variant's weights, inputs and outputs."""
  torch.manual_seed(seed)
  model = _random_model(variant)
  params = _params(variant.settings, model)
  batches = _batches(variant.settings, model)
  prompt = torch.randn(PROMPT_LENGTH, model.config.d_model)
  found = {f'batch/{name}/{key}': x for name, batch in batches.items()
           for key, x in batch.items()}
  found['prompt'] = prompt
  sides = {
      'plain': lambda: model,
      'peft_1': lambda: _peft(model, prompt, submodules=1),
      'peft_2': lambda: _peft(model, prompt, submodules=2)}
  for side, get in sides.items():
    called = get()
    outputs = _decoded(called, batches)
    for name, batch in batches.items():
      arrays = _teacher_forced(called, batch)
      if called is not model:
        arrays |= _gradients(called, batch)
      outputs |= {f'{name}/{key}': x for key, x in arrays.items()}
    if side == 'peft_2':
      del outputs['padded/encoded']  # The same again, and large.
    found |= {f'{side}/{key}': x for key, x in outputs.items()}
  trained = _trained(model, prompt, list(batches.values()))
  found |= {f'trained/{key}': x for key, x in trained.items()}
  return {**{f'params/{path}': x for path, x in params.items()},
          **{key: _narrow(x) for key, x in found.items()}}


def _buckets() -> Arrays:
  """The bucket of every distance in the published sizes, 32 and 128."""
  bucket = transformers.models.t5.modeling_t5.T5Attention
  distances = torch.arange(-200, 201)
  return {
      'relative_position': distances,
      **{key: bucket._relative_position_bucket(
          distances, bidirectional=bidirectional, num_buckets=32,
          max_distance=128)
         for key, bidirectional in (('encoder', True), ('decoder', False))},
  }


def _narrow(x: torch.Tensor) -> np.ndarray:
  """As numpy, integers as int32."""
  x = x.detach().numpy()
  return x.astype(np.int32) if x.dtype == np.int64 else x


def save(path: pathlib.Path, made: Mapping[str, Mapping[str, np.ndarray]]):
  """One flat file, `model/array`, and the versions that made it."""
  np.savez_compressed(
      path,
      made_with=np.array(
          f'torch {torch.__version__}, peft {peft.__version__}, '
          f'transformers {transformers.__version__}, seed {SEED}'),
      **{f'{name}/{key}': x
         for name, arrays in made.items() for key, x in arrays.items()})


if __name__ == '__main__':
  save(pathlib.Path(__file__).with_name('parity.npz'), make(SEED))
