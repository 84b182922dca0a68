"""Functions that take the fields of a dataclass as keyword arguments.

    @keyword_options.fields_of(Sampling)
    def temperature_sample(inputs, ..., **options):
      sampling = Sampling(**options)

keeps gin's names (`temperature_sample.topk`) while the choices travel as one
value. gin cannot see the names behind `**options`; the attribute set here lets
`gin_utils` check them when a configuration is parsed.
"""

from collections.abc import Callable
import dataclasses
import inspect
from typing import Any, TypeVar

Function = TypeVar('Function', bound=Callable[..., Any])

_ATTRIBUTE = 'keyword_options'


def fields_of(options: type) -> Callable[[Function], Function]:
  """Declares that a function's further keywords are a dataclass's fields."""

  def declare(fn: Function) -> Function:
    setattr(fn, _ATTRIBUTE, options)
    return fn

  return declare


def names(fn: Callable[..., Any]) -> set[str] | None:
  """All keywords that a function or class takes; None if none were declared.

  A class takes those of its bases too, to which `**options` pass on.
  """
  family = fn.__mro__[:-1] if isinstance(fn, type) else (fn,)
  declared = [vars(f)[_ATTRIBUTE] for f in family if _ATTRIBUTE in vars(f)]
  if not declared:
    return None
  return {
      *(field.name for options in declared
        for field in dataclasses.fields(options)),
      *(name for f in family for name in inspect.signature(f).parameters)}
