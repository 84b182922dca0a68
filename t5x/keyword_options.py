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
from typing import Any, TypeVar

Function = TypeVar('Function', bound=Callable[..., Any])

_ATTRIBUTE = 'keyword_options'


def fields_of(options: type) -> Callable[[Function], Function]:
  """Declares that a function's further keywords are a dataclass's fields."""

  def declare(fn: Function) -> Function:
    setattr(fn, _ATTRIBUTE, options)
    return fn

  return declare


def names(fn: Callable[..., Any]) -> list[str] | None:
  """The names that were declared for a function; None if none were."""
  options = getattr(fn, _ATTRIBUTE, None)
  return options and [field.name for field in dataclasses.fields(options)]
