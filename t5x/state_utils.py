"""Which checkpoint entry each parameter of a model is restored from."""

from collections.abc import Callable, Collection, Mapping, Sequence
import difflib
import re
from typing import Any

from flax import traverse_util

AssignmentMap = Sequence[tuple[str, str | None]]


def flatten_state_dict(
    state_dict: Mapping[str, Any], keep_empty_nodes: bool = False
) -> dict[str, Any]:
  """From nested dictionaries to names joined by `/`.

  Args:
    state_dict: nested; the spec of a tensorstore array is a leaf.
    keep_empty_nodes: keep dictionaries without entries.

  Returns:
    From name to leaf.
  """
  return traverse_util.flatten_dict(
      dict(state_dict), keep_empty_nodes=keep_empty_nodes, sep='/',
      is_leaf=lambda _, value: isinstance(value, Mapping) and (
          'driver' in value and 'kvstore' in value))


def apply_assignment_map(
    ckpt_state: Mapping[str, Any],
    state: Mapping[str, Any],
    assignment_map: AssignmentMap,
    require_all_rules_match: bool = True,
    *,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
  """A checkpoint under the names that a model has; T5X's spelling.

  Args:
    ckpt_state: the checkpoint, nested; arrays may be unread.
    state: the model's state, nested; only its names count.
    assignment_map: see `resolve_assignment_map`.
    require_all_rules_match: fail if a rule matches nothing.
    is_resuming: the checkpoint is the run's own, and is left as it is.

  Returns:
    The checkpoint, nested. Entries that a rule moved or ruled out are gone
    from where they were; those that no rule is about stay.

  Raises:
    ValueError: see `resolve_assignment_map`.
  """
  if is_resuming:
    return ckpt_state
  available = flatten_state_dict(ckpt_state)
  sources = resolve_assignment_map(
      list(flatten_state_dict(state)), available, assignment_map,
      require_all_rules_match=require_all_rules_match)
  moved = {source for source in sources.values() if source is not None}
  result = {name: value for name, value in available.items()
            if name not in moved and name not in sources}
  result |= {name: available[source] for name, source in sources.items()
             if source is not None}
  return traverse_util.unflatten_dict(result, sep='/')


def transformed(
    arrays: Mapping[str, Any],
    like: Mapping[str, Any],
    transformations: Sequence[Callable[..., Mapping[str, Any]]],
    *,
    is_resuming: bool = False,
) -> dict[str, Any]:
  """A checkpoint after `state_transformation_fns`, by flat name.

  Args:
    arrays: the checkpoint by flat name.
    like: the model's state, nested.
    transformations: functions `(state_dict, target_state_dict, *,
      is_resuming)` that return the changed state.
    is_resuming: passed on.

  Returns:
    From flat name to array.
  """
  if not transformations:
    return dict(arrays)
  tree: Mapping[str, Any] = traverse_util.unflatten_dict(
      dict(arrays), sep='/')
  for transform in transformations:
    tree = transform(tree, like, is_resuming=is_resuming)
  return flatten_state_dict(tree)


def resolve_assignment_map(
    wanted: Collection[str],
    available: Collection[str],
    assignment_map: AssignmentMap | None,
    *,
    require_all_rules_match: bool = True,
) -> dict[str, str | None]:
  """Matches the names a model wants with the names a checkpoint has.

  A rule is a regex on the model's name (`target/encoder/...`) and the
  checkpoint's name, which may refer to groups of the regex; None means that the
  parameter is deliberately not restored. The first rule that matches the whole
  name wins; a name without a rule is restored from the entry of the same name.

  Args:
    wanted: names in the model.
    available: names in the checkpoint.
    assignment_map: the rules, in order.
    require_all_rules_match: fail if a rule matches no wanted name.

  Returns:
    From wanted name to checkpoint name, None where a rule says so. Names that
    are neither in the checkpoint nor ruled out are missing from it.

  Raises:
    ValueError: if a rule matches no wanted name, or leads to a name that is
      not in the checkpoint.
  """
  rules = list(assignment_map or ())
  unused = dict(rules)
  sources: dict[str, str | None] = {}
  for name in wanted:
    for regex, replacement in rules:
      if match := re.fullmatch(regex, name):
        unused.pop(regex, None)
        sources[name] = None if replacement is None else _existing(
            match.expand(replacement), name, available)
        break
    else:
      if name in available:
        sources[name] = name
  # T5X's rules may also be about optimiser states that this run does not have.
  unused = {regex: source for regex, source in unused.items()
            if not regex.lstrip('^(').startswith('state')}
  if unused and require_all_rules_match:
    raise ValueError(
        'RestoreCheckpointConfig.assignment_map: the rule '
        f'{next(iter(unused))!r} matches no parameter of the model; remove it. '
        f'Names look like {min(wanted, default="nothing")!r}.')
  return sources


def _existing(source: str, name: str, available: Collection[str]) -> str:
  """The source, if the checkpoint has it."""
  if source not in available:
    raise ValueError(
        f'RestoreCheckpointConfig.assignment_map sends {name!r} to {source!r}, '
        'which the checkpoint does not have. Nearest: '
        f'{nearest(source, available)}.')
  return source


def nearest(name: str, names: Collection[str], limit: int = 3) -> str:
  """The most similar names, for error messages."""
  found = difflib.get_close_matches(name, list(names), n=limit, cutoff=0.0)
  return ', '.join(repr(n) for n in found) or 'nothing'

