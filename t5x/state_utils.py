"""Which checkpoint entry each parameter of a model is restored from."""

from collections.abc import Collection, Sequence
import difflib
import re

AssignmentMap = Sequence[tuple[str, str | None]]


def resolve_assignment_map(
    wanted: Collection[str],
    available: Collection[str],
    assignment_map: AssignmentMap | None,
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
  # T5X's rules may also be about optimiser states, which are not restored.
  unused = {regex: source for regex, source in unused.items()
            if not regex.lstrip('^(').startswith('state')}
  if unused:
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

