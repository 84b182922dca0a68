"""The soft prompt: a parameter `[P, H]`, and how it is initialised.

An initialiser is a function `(rng, shape) -> array`. Lester et al., figure 3b:
class labels are the best start, sampled vocabulary is close, uniform is worst,
and the gap closes with the size of the model.
"""

from collections.abc import Callable, Sequence
import functools
import logging
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
from prompt_tuning import prompt_files
from t5x import checkpoints

Initializer = Callable[[Array, Sequence[int]], Array]
EmbeddingTable = Float[np.ndarray, 'V H']


def expand_to_batch(x: Array, y: Array) -> Array:
  """Repeats `x` for every row of `y`: `[...]` to `[B, ...]`."""
  return jnp.broadcast_to(
      x.reshape((1, *x.shape)), (y.shape[0], *x.shape))


def np_load(path: str, restore_dtype: Any = None) -> np.ndarray:
  """An array from a file, under the name that published gin files give it.

  Args:
    path: of a prompt of any format, see `prompt_files`, or of a table `[V, H]`.
    restore_dtype: dtype to convert to; None keeps the file's.

  Returns:
    The array.

  Raises:
    ValueError: if the file cannot be trusted.
  """
  array = prompt_files.read(path)
  return array if restore_dtype is None else array.astype(restore_dtype)


# gin asks for the table whenever a model is traced; it is read once.
@functools.lru_cache(maxsize=2)
def t5x_load(
    checkpoint_path: str, variable_path: str, restore_dtype: Any = None
) -> np.ndarray:
  """One variable of a checkpoint; the others are not read.

  Args:
    checkpoint_path: see `t5x.checkpoints.find_checkpoint`.
    variable_path: its path, for instance `token_embedder/embedding`; `target/`
      and slashes in front are dropped.
    restore_dtype: dtype to convert to; None keeps the checkpoint's.

  Returns:
    The variable.

  Raises:
    ValueError: if there is no checkpoint.
    KeyError: if it has no such variable.
  """
  if not checkpoint_path:
    raise ValueError(
        't5x_load.checkpoint_path is not set: this start of the prompt takes '
        'embeddings from INITIAL_CHECKPOINT_PATH.')
  path = variable_path.strip('/').removeprefix('target/')
  arrays = checkpoints.open_checkpoint(
      checkpoints.find_checkpoint(checkpoint_path))
  if f'target/{path}' not in arrays:
    names = sorted(n.removeprefix('target/') for n in arrays
                   if n.startswith('target/'))
    raise KeyError(
        f'{checkpoint_path} has no variable {path!r}; it has {len(names)}: '
        f'{", ".join(names[:3])}{", ..." if len(names) > 3 else ""}.')
  array = arrays[f'target/{path}'].get()
  if restore_dtype is not None:
    array = array.astype(restore_dtype)
  array = np.array(array)
  array.flags.writeable = False  # All callers get the same one.
  return array


def symmetric_uniform(scale: float = 0.5) -> Initializer:
  """Uniform values in `[-scale, scale]`: the paper's random initialisation.

  Flax's `uniform(scale)`, which the reference configuration uses, draws from
  `[0, scale)`.
  """
  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    return jax.random.uniform(
        rng, tuple(shape), jnp.float32, minval=-scale, maxval=scale)

  return initialize


def standard_normal() -> Initializer:
  """Values of N(0, 1): PEFT's RANDOM.

  Embeddings of T5 are about ten times, those of other models a fiftieth of it.
  """
  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    return jax.random.normal(rng, tuple(shape), jnp.float32)

  return initialize


def from_array(prompt: Float[Array, 'P H']) -> Initializer:
  """A given prompt, for instance one trained on another task (SPoT).

  Args:
    prompt: its values.

  Returns:
    An initialiser that ignores the key.

  Raises:
    ValueError: by the initialiser, if the prompt has another shape.
  """
  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    del rng
    if tuple(prompt.shape) != tuple(shape):
      raise ValueError(
          f'The prompt to start from has shape {list(prompt.shape)}, but this '
          f'model and PROMPT_LENGTH need {list(shape)}. Set PROMPT_LENGTH to '
          'its rows, and use the model size that it was trained for.')
    return jnp.asarray(prompt)

  return initialize


def from_sample_of_embeddings(
    embeddings: EmbeddingTable, population_size: int | None = None
) -> Initializer:
  """Rows of the embedding table, drawn without replacement.

  Args:
    embeddings: the table.
    population_size: draw from the first rows only, which are the most frequent
      tokens of a SentencePiece vocabulary; None draws from all.

  Returns:
    An initialiser; it draws with replacement if the prompt is longer than the
    population.

  Raises:
    ValueError: if the population is not positive; by the initialiser, if the
      widths differ.
  """
  size = embeddings.shape[0] if population_size is None else population_size
  if size <= 0:
    raise ValueError(
        f'from_sample_of_embeddings.population_size is {size}; it must be '
        'positive.')
  if size > embeddings.shape[0]:
    logging.warning(
        'population_size %d is more than the %d rows of the embedding table; '
        'drawing from all.', size, embeddings.shape[0])
    size = embeddings.shape[0]
  # Only the population becomes a constant of the compiled initialisation.
  population = np.asarray(embeddings[:size])

  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    _require_width(population, shape)
    replace = shape[0] > size
    if replace:
      logging.warning('The prompt is longer (%d) than the population (%d); '
                      'drawing with replacement.', shape[0], size)
    rows = jax.random.choice(rng, size, (shape[0],), replace)
    return jnp.take(jnp.asarray(population), rows, axis=0)

  return initialize


def from_any_embeddings(embeddings: EmbeddingTable) -> Initializer:
  """Rows of the whole table, each drawn on its own: PEFT's SAMPLE_VOCAB.

  A row may come twice, and be one of the table's padding.

  Args:
    embeddings: the table.

  Returns:
    An initialiser.

  Raises:
    ValueError: by the initialiser, if the widths differ.
  """
  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    _require_width(embeddings, shape)
    rows = jax.random.randint(rng, (shape[0],), 0, embeddings.shape[0])
    return jnp.take(jnp.asarray(embeddings), rows, axis=0)

  return initialize


def from_embedded_list(
    embeddings: EmbeddingTable,
    vocab: Any,
    texts: Sequence[str],
    initializer: Initializer | None = None,
) -> Initializer:
  """One text per position: the mean of its tokens' embeddings.

  With the task's class labels as texts this is the paper's class-label
  initialisation.

  Args:
    embeddings: the table.
    vocab: a SeqIO vocabulary; its `encode` adds no end token.
    texts: for positions 0, 1, ...; what does not fit is left out.
    initializer: for the positions that are left; None is uniform in [0, 0.01).

  Returns:
    An initialiser.

  Raises:
    ValueError: if `texts` is one text; by the initialiser, if the widths differ
      or a text is empty.
  """
  if isinstance(texts, str):
    raise ValueError(
        f'CLASS_LABELS is the text {texts!r}; expected a list of texts, for '
        'instance "[\'positive\', \'negative\']".')
  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    _require_width(embeddings, shape)
    if len(texts) > shape[0]:
      logging.warning('Only the first %d of %d texts fit into the prompt.',
                      shape[0], len(texts))
    rows = []
    for text in texts[:shape[0]]:
      if not (ids := vocab.encode(text)):
        raise ValueError(f'from_embedded_list: {text!r} has no tokens.')
      rows.append(np.mean(embeddings[np.asarray(ids)], axis=0))
    return _on_top(rows, initializer, rng, shape)

  return initialize


def from_embedded_string(
    embeddings: EmbeddingTable,
    vocab: Any,
    text: str,
    initializer: Initializer | None = None,
) -> Initializer:
  """One token of a text per position: a written prompt as the start.

  Args:
    embeddings: the table.
    vocab: a SeqIO vocabulary.
    text: what does not fit is cut.
    initializer: for the positions that are left; None is uniform in [0, 0.01).

  Returns:
    An initialiser.

  Raises:
    ValueError: by the initialiser, if the widths differ.
  """
  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    _require_width(embeddings, shape)
    ids = vocab.encode(text)
    if len(ids) > shape[0]:
      logging.warning('%r has %d tokens; the prompt takes the first %d.',
                      text, len(ids), shape[0])
    rows = [embeddings[i] for i in ids[:shape[0]]]
    return _on_top(rows, initializer, rng, shape)

  return initialize


def from_repeated_string(
    embeddings: EmbeddingTable, vocab: Any, text: str) -> Initializer:
  """The tokens of a text over and over, end token included: PEFT's TEXT.

      P = 6, "classify the review"    classify the review </s> classify the

  Args:
    embeddings: the table.
    vocab: a SeqIO vocabulary with an end token; its `encode` adds none.
    text: what does not fit is cut.

  Returns:
    An initialiser that ignores the key.

  Raises:
    ValueError: if the text is not one text, or the vocabulary has no end token;
      by the initialiser, if the widths differ.
  """
  if not isinstance(text, str):
    raise ValueError(
        f'PROMPT_STRING is {text!r}; expected one text.')
  if vocab.eos_id is None:
    raise ValueError(
        'from_repeated_string: the vocabulary has no end token; '
        'from_embedded_string does without one.')

  def initialize(rng: Array, shape: Sequence[int]) -> Array:
    del rng
    _require_width(embeddings, shape)
    ids = [*vocab.encode(text), vocab.eos_id]
    return jnp.asarray(embeddings[np.resize(np.asarray(ids), shape[0])])

  return initialize


def _require_width(embeddings: np.ndarray, shape: Sequence[int]) -> None:
  """Fails if the table belongs to a model of another width."""
  if embeddings.shape[-1] != shape[-1]:
    raise ValueError(
        f'The embedding table has width {embeddings.shape[-1]}, but the model '
        f'has {shape[-1]}. Use the table of the model that is trained.')


def _on_top(
    rows: Sequence[np.ndarray],
    initializer: Initializer | None,
    rng: Array,
    shape: Sequence[int],
) -> Array:
  """Given rows first, the rest from an initialiser."""
  fill = (initializer or nn.initializers.uniform())(rng, tuple(shape))
  if not rows:
    return fill
  given = jnp.asarray(np.stack(rows), fill.dtype)
  return jnp.concatenate([given, fill[len(rows):]])


class Prompt(nn.Module):
  """A trainable prompt, the same for every input.

  Its second axis is not called `embed`, so it stays whole when parameters are
  sharded over devices, and can be saved as one file.

  Attributes:
    length: P.
    prompt_init: its initialiser.
    axis_names: logical axes.
    dtype: of what is returned; the parameter itself is float32.
  """

  length: int
  prompt_init: Initializer = nn.initializers.uniform()
  axis_names: tuple[str, str] = ('prompt', 'prompt_embed')
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self, x: Int[Array, 'B T'], x_embed: Float[Array, 'B T H']
  ) -> Float[Array, 'P H']:
    """The prompt; the inputs give its width only."""
    del x

    def initialize(rng: Array, shape: Sequence[int]) -> Array:
      return jnp.asarray(self.prompt_init(rng, shape), jnp.float32)

    prompt = self.param(
        'prompt', nn.with_logical_partitioning(initialize, self.axis_names),
        (self.length, x_embed.shape[-1]))
    return jnp.asarray(prompt, self.dtype)


class InferenceOnlyPrompt(nn.Module):
  """A prompt that is a constant, not a parameter.

  A checkpoint of the frozen model then restores as it is, without rules for
  the missing prompt.

  Attributes:
    length: P.
    embed_dim: H.
    prompt_init: gives its values; called with key 0.
    dtype: of what is returned.
  """

  length: int
  embed_dim: int
  prompt_init: Initializer
  dtype: Any = jnp.float32

  def __call__(
      self, x: Int[Array, 'B T'], x_embed: Float[Array, 'B T H']
  ) -> Float[Array, 'P H']:
    """The prompt."""
    del x, x_embed
    shape = (self.length, self.embed_dim)
    return jnp.asarray(self.prompt_init(jax.random.key(0), shape), self.dtype)
