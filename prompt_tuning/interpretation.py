"""What a prompt's tokens are near to: words, and each other.

Lester et al., The power of scale for parameter-efficient prompt tuning, section
7: the nearest vocabulary entries of a trained prompt's tokens, by cosine, form
word-like clusters, and class labels among them persist. A prompt is no text all
the same: its tokens are far longer than embeddings.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float, Int
import numpy as np
from t5x import lazy_arrays

Prompt = Float[np.ndarray, 'P H']
# Rows of the table that are compared at once, so that it need not fit.
_BLOCK = 16_384


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """The vocabulary entries that are nearest to each token of a prompt.

  Attributes:
    ids: token ids, the nearest first, `[P, C]`.
    cosines: their cosines, `[P, C]`.
    mean_norm: mean length of all rows of the table.
  """

  ids: Int[np.ndarray, 'P C']
  cosines: Float[np.ndarray, 'P C']
  mean_norm: float


def norms(prompt: Prompt) -> Float[np.ndarray, ' P']:
  """Lengths of the tokens."""
  return np.linalg.norm(np.asarray(prompt, np.float32), axis=1)


def neighbours(
    prompt: Prompt, table: lazy_arrays.LazyArray, count: int = 5
) -> Neighbours:
  """The nearest entries of an embedding table, by cosine.

  Args:
    prompt: the prompt.
    table: the table `[V, H]`; it is read in blocks of rows.
    count: entries per token, C. Rows of zeros are never among them.

  Returns:
    The entries.

  Raises:
    ValueError: if widths differ, a token is zero, or there are fewer entries.
  """
  if len(table.shape) != 2 or table.shape[1] != prompt.shape[1]:
    raise ValueError(
        f'{table.name} has shape {list(table.shape)}, the prompt '
        f'{list(prompt.shape)}; expected the embedding table [V, H] of the '
        'model that the prompt was trained for.')
  if not 1 <= count <= table.shape[0]:
    raise ValueError(
        f'{count} neighbours are asked for; the table has {table.shape[0]}.')
  lengths = norms(prompt)
  if not lengths.all():
    raise ValueError(
        f'token {int(np.argmin(lengths))} of the prompt is zero, which is near '
        'to nothing.')
  directions = np.asarray(prompt, np.float32) / lengths[:, None]
  best = np.full((len(prompt), 0), 0.0, np.float32)
  ids = np.full((len(prompt), 0), 0)
  total = 0.0
  for start in range(0, table.shape[0], _BLOCK):
    rows = table.read_slice((
        slice(start, min(start + _BLOCK, table.shape[0])), slice(None)))
    sizes = norms(rows)
    total += float(sizes.sum())
    cosines = directions @ np.asarray(rows, np.float32).T / np.where(
        sizes > 0, sizes, 1)
    cosines[:, sizes == 0] = -np.inf
    best = np.concatenate([best, cosines], axis=1)
    ids = np.concatenate([ids, np.broadcast_to(
        np.arange(start, start + len(rows)), cosines.shape)], axis=1)
    # The lower id first where equal, as it is the more frequent token.
    order = np.argsort(-best, axis=1, kind='stable')[:, :count]
    best, ids = (np.take_along_axis(x, order, 1) for x in (best, ids))
  return Neighbours(ids, best, total / table.shape[0])


def shared_words(found: Neighbours, ids: Sequence[int]) -> list[int]:
  """Tokens of a prompt that have one of some entries among their nearest.

  Args:
    found: the nearest entries.
    ids: for instance those of the class labels.

  Returns:
    Their places.
  """
  return np.flatnonzero(np.isin(found.ids, list(ids)).any(axis=1)).tolist()
