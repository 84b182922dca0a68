"""Optimiser states by name: ours, and what T5X calls the same.

Ours is a nest of tuples around dictionaries; T5X keeps Adafactor's slots as
`state/param_states/<path>/{v_row, v_col, v, m}`. The two agree in shape and
meaning, so one can be restored from the other. Counters are not slots: ours
count from the run's first step.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from t5x import adafactor

Leaf = TypeVar('Leaf')

SLOTS = adafactor.Slots._fields
SAVED_PREFIX = 'state/optimizer/'


def named(opt_state: Any) -> dict[str, Any]:
  """The leaves of an optimiser state by name, in tree order."""
  leaves = jax.tree_util.tree_flatten_with_path(opt_state)[0]
  return {
      jax.tree_util.keystr(path, simple=True, separator=':').replace('/', '|'):
      leaf
      for path, leaf in leaves
  }


def t5x_name(name: str) -> str | None:
  """T5X's name of a leaf.

  Args:
    name: one of `named`'s.

  Returns:
    `state/param_states/<path>/<slot>`; None for a counter, or the state of an
    optimiser that is not Adafactor.
  """
  *_, field, path, slot = ('', '', '', *name.split(':'))
  if field != 'slots' or slot not in SLOTS:
    return None
  return f'state/param_states/{path.replace("|", "/")}/{slot}'


def with_t5x_names(arrays: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """A checkpoint in which our own slots have T5X's names.

  Args:
    arrays: a checkpoint by flat name.

  Returns:
    The same, without those entries of `state/optimizer` that T5X does not have.
  """
  renamed = {}
  for name, array in arrays.items():
    if not name.startswith(SAVED_PREFIX):
      renamed[name] = array
    elif other := t5x_name(name.removeprefix(SAVED_PREFIX)):
      renamed[other] = array
  return renamed
