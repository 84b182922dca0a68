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
import sklearn.neighbors
from t5x import lazy_arrays

Prompt = Float[np.ndarray, 'P H']


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
    table: the table `[V, H]`.
    count: entries per token, C.

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
  rows = np.asarray(table.get(), np.float32)
  index = sklearn.neighbors.NearestNeighbors(
      n_neighbors=count, metric='cosine', algorithm='brute').fit(rows)
  distances, ids = index.kneighbors(np.asarray(prompt, np.float32))
  return Neighbours(ids, 1 - distances, float(norms(rows).mean()))


def places_near(found: Neighbours, ids: Sequence[int]) -> list[int]:
  """Tokens of a prompt that have one of some entries among their nearest.

  Args:
    found: the nearest entries.
    ids: for instance those of the class labels.

  Returns:
    Their places.
  """
  return np.flatnonzero(np.isin(found.ids, list(ids)).any(axis=1)).tolist()
