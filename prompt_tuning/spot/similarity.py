"""How alike prompts are: prompts as embeddings of their tasks.

Every measure takes prompts `[P, H]`, of any lengths and of one width, and
returns all similarities at once, `[K, K]` or `[K, M]`:

    average_tokens    cos(mean of a's tokens, mean of b's tokens)
    token_pairs       mean over all pairs of cos(token of a, token of b)
    matched_tokens    the same over the best one-to-one matching of tokens
    subspaces         overlap of the spaces that the tokens span

The first two are the paper's (Vu et al., SPoT, section 3.2). They ask whether
tokens point in one direction on average, and come out near zero when tokens of
a prompt differ from each other, as trained ones do. The third asks whether
every token has a counterpart, in whatever order; it is 1 for a prompt and
itself, which the second is not. The last asks the same of the directions that
tokens vary in (Hu et al., LoRA, section 7.2, compare weights in this way).
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
import numpy as np
import scipy.optimize

Prompt = Float[np.ndarray, 'P H']
Measure = Callable[..., Float[np.ndarray, 'K M']]


def average_tokens(
    prompts: Sequence[Prompt], others: Sequence[Prompt] | None = None
) -> Float[np.ndarray, 'K M']:
  """Cosine of the mean tokens.

  Args:
    prompts: K prompts.
    others: M prompts; None compares `prompts` with each other.

  Returns:
    Similarities in [-1, 1].

  Raises:
    ValueError: see `comparable`; also for tokens whose mean is zero.
  """
  return _product(
      lambda prompt: _directions(prompt.mean(axis=0)), prompts, others)


def token_pairs(
    prompts: Sequence[Prompt], others: Sequence[Prompt] | None = None
) -> Float[np.ndarray, 'K M']:
  """Mean cosine of all pairs of tokens.

  It is the product of the prompts' mean directions, so no pair is computed.

  Args:
    prompts: K prompts.
    others: M prompts; None compares `prompts` with each other.

  Returns:
    Similarities in [-1, 1]; that of a prompt with itself is below 1.

  Raises:
    ValueError: see `comparable`; also for a token that is zero.
  """
  return _product(
      lambda prompt: _directions(prompt).mean(axis=0), prompts, others)


def matched_tokens(
    prompts: Sequence[Prompt], others: Sequence[Prompt] | None = None
) -> Float[np.ndarray, 'K M']:
  """Mean cosine of the tokens that are matched best, one to one.

  Every token of the shorter prompt gets a token of the longer one, so that the
  sum is greatest (scipy's assignment). Takes about a millisecond for two
  prompts of 100 tokens.

  Args:
    prompts: K prompts.
    others: M prompts; None compares `prompts` with each other.

  Returns:
    Similarities in [-1, 1].

  Raises:
    ValueError: see `comparable`; also for a token that is zero.
  """
  first, second = _both(_directions, prompts, others)
  found = np.empty((len(first), len(second)))
  for i, a in enumerate(first):
    for j, b in enumerate(second):
      if others is None and j < i:
        found[i, j] = found[j, i]
        continue
      cosines = a @ b.T
      found[i, j] = cosines[scipy.optimize.linear_sum_assignment(
          cosines, maximize=True)].mean()
  return np.clip(found, -1.0, 1.0)


def subspaces(
    prompts: Sequence[Prompt],
    others: Sequence[Prompt] | None = None,
    dimensions: int = 8,
) -> Float[np.ndarray, 'K M']:
  """Overlap of the spaces of the tokens' main directions.

  The mean squared cosine of the principal angles, ||U^T V||_F^2 / `dimensions`,
  of the first right singular vectors of the two prompts.

  Args:
    prompts: K prompts.
    others: M prompts; None compares `prompts` with each other.
    dimensions: of the spaces.

  Returns:
    Similarities in [0, 1]; for random prompts `dimensions` / H on average.

  Raises:
    ValueError: see `comparable`; also if a prompt has fewer dimensions.
  """
  def basis(prompt: Prompt) -> Float[np.ndarray, 'D H']:
    _, sizes, directions = np.linalg.svd(prompt, full_matrices=False)
    rank = int((sizes > sizes[0] * np.finfo(prompt.dtype).eps
                * max(prompt.shape)).sum())
    if rank < dimensions:
      raise ValueError(
          f'a prompt of shape {list(prompt.shape)} spans {rank} dimensions; '
          f'subspaces.dimensions is {dimensions}, make it smaller.')
    return directions[:dimensions]

  first, second = _both(basis, prompts, others)
  return np.clip(np.array([
      [np.sum((a @ b.T)**2) / dimensions for b in second] for a in first]),
                 0.0, 1.0)


# By the name under which commands know them.
MEASURES: dict[str, Measure] = {
    function.__name__: function
    for function in (average_tokens, token_pairs, matched_tokens, subspaces)}


def comparable(prompts: Sequence[Prompt]) -> list[Prompt]:
  """Prompts in float64, as every measure computes.

  Args:
    prompts: K prompts.

  Returns:
    The prompts.

  Raises:
    ValueError: if there are none, one is no matrix, is empty or has a value
      that is not finite, or widths differ.
  """
  if not len(prompts):
    raise ValueError('no prompts are given; similarity needs at least one.')
  found = [np.asarray(prompt, np.float64) for prompt in prompts]
  for number, prompt in enumerate(found):
    if prompt.ndim != 2 or not prompt.size:
      raise ValueError(
          f'prompt {number} has shape {list(prompt.shape)}; expected [P, H].')
    if not np.isfinite(prompt).all():
      raise ValueError(
          f'prompt {number} has values that are infinite or not a number.')
    if prompt.shape[1] != found[0].shape[1]:
      raise ValueError(
          f'prompt {number} has width {prompt.shape[1]}, prompt 0 '
          f'{found[0].shape[1]}; only prompts of one model can be compared.')
  return found


def _both(
    embed: Callable[[Prompt], np.ndarray],
    prompts: Sequence[Prompt],
    others: Sequence[Prompt] | None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """What a measure compares of both sides."""
  if others is not None and not len(others):
    raise ValueError('no other prompts are given to compare with.')
  everything = comparable([*prompts, *(() if others is None else others)])
  embedded = [embed(prompt) for prompt in everything]
  first = embedded[:len(prompts)]
  return first, first if others is None else embedded[len(prompts):]


def _product(
    embed: Callable[[Prompt], np.ndarray],
    prompts: Sequence[Prompt],
    others: Sequence[Prompt] | None,
) -> Float[np.ndarray, 'K M']:
  """Products of vectors, one per prompt."""
  first, second = _both(embed, prompts, others)
  return np.clip(np.stack(first) @ np.stack(second).T, -1.0, 1.0)


def _directions(
    tokens: Float[np.ndarray, '*tokens H']) -> Float[np.ndarray, '*tokens H']:
  """Vectors of length one."""
  lengths = np.linalg.norm(tokens, axis=-1, keepdims=True)
  if not lengths.all():
    raise ValueError(
        'a prompt has a token, or a mean of tokens, that is zero, which has no '
        'direction; train it before it is compared.')
  return tokens / lengths
