"""One prompt from several: averages weighted by similarity.

The paper's second way to use the k most similar sources (Vu et al., SPoT,
section 3.2): the target starts from their mean, weighted by similarity.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
import numpy as np
from prompt_tuning.spot import retrieval


def similarity_weights(
    similarity: Mapping[str, float], k: int
) -> dict[str, float]:
  """Weights of the k most similar prompts: similarity over its sum.

  Args:
    similarity: by name.
    k: how many get a weight.

  Returns:
    Weights by name, the greatest first; they sum to one.

  Raises:
    ValueError: if there are fewer than k, or one of the k is not positive.
  """
  if not 1 <= k <= len(similarity):
    raise ValueError(f'k is {k}; there are {len(similarity)} prompts.')
  names = retrieval.rank(similarity)[:k]
  if similarity[names[-1]] <= 0:
    fitting = sum(value > 0 for value in similarity.values())
    raise ValueError(
        f'{names[-1]!r} has similarity {similarity[names[-1]]:.3g} and can '
        f'have no weight; {fitting} of the prompts have one above zero, use at '
        'most that k.')
  total = sum(similarity[name] for name in names)
  return {name: similarity[name] / total for name in names}


def weighted_average(
    prompts: Sequence[Float[np.ndarray, 'P H']],
    weights: Sequence[float] | None = None,
) -> Float[np.ndarray, 'P H']:
  """The weighted mean of prompts, place by place.

  Args:
    prompts: of one shape.
    weights: one per prompt, of any sum that is not zero; None weighs all
      alike.

  Returns:
    The mean, in float32.

  Raises:
    ValueError: if there are none, shapes differ, a value is not finite, or the
      weights do not fit.
  """
  shapes = sorted({tuple(np.shape(prompt)) for prompt in prompts})
  if len(shapes) != 1 or len(shapes[0]) != 2:
    raise ValueError(
        f'prompts of the shapes {[list(s) for s in shapes]} have no mean; '
        'expected prompts of one shape [P, H].')
  given = np.ones(len(prompts)) if weights is None else np.asarray(
      weights, np.float64)
  if given.shape != (len(prompts),) or not np.isfinite(given).all() or (
      given.sum() == 0):
    raise ValueError(
        f'the weights {given.tolist()} do not fit {len(prompts)} prompts; '
        'expected a number for each, with a sum that is not zero.')
  stacked = np.stack([np.asarray(prompt, np.float64) for prompt in prompts])
  if not np.isfinite(stacked).all():
    bad = int(np.argmin(np.isfinite(stacked).all(axis=(1, 2))))
    raise ValueError(
        f'prompt {bad} has values that are infinite or not a number.')
  return np.tensordot(given / given.sum(), stacked, 1).astype(np.float32)
