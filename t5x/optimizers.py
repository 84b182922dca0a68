"""Optimiser definitions, which parameters they train, and learning rates.

An `OptimizerDef` is what gin builds before any parameter exists. It answers two
questions: which parameters it trains (everything else is frozen), and which
optax transformation updates them. Trees here are flat: a dictionary from
parameter path (`encoder/prompt/prompt/prompt`) to array.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import difflib
import functools
import re

from flax import traverse_util
from jaxtyping import Array, Float, Int
import optax

LearningRateCallable = Callable[[Int[Array, '']], Float[Array, '']]


@dataclasses.dataclass(frozen=True)
class OptimizerDef:
  """An optimiser that trains every parameter, unless a subclass says less."""

  def labels(self, paths: Collection[str]) -> dict[str, str]:
    """Names the group that updates each path; frozen paths are left out.

    Args:
      paths: all parameters of the model.

    Returns:
      From path to label; the labels are this definition's own.

    Raises:
      ValueError: when the definition selects parameters that do not exist.
    """
    return {path: '0' for path in paths}

  def with_axes(
      self, axes: Mapping[str, Sequence[str | None]]) -> 'OptimizerDef':
    """The same definition, knowing the logical axes of every parameter.

    Args:
      axes: from path to the names of the parameter's axes.

    Returns:
      Itself, unless a subclass has rules for axes.
    """
    del axes
    return self

  def transformation(
      self, learning_rate: LearningRateCallable, first_step: int
  ) -> optax.GradientTransformation:
    """The update rule.

    Args:
      learning_rate: from absolute step to rate.
      first_step: absolute step at which this run began, so that a rule with a
        counter of its own (which begins at zero) can follow the absolute step.

    Returns:
      An optax transformation whose updates are added to the parameters.
    """
    raise NotImplementedError(type(self).__name__)


@dataclasses.dataclass(frozen=True)
class OptaxWrapper(OptimizerDef):
  """Any optax transformation as an `OptimizerDef`.

  As in T5X the transformation keeps its own learning rate and counts its own
  steps from zero; the trainer's schedule is not applied to it.

  Attributes:
    optax_optimizer: the transformation.
  """

  optax_optimizer: optax.GradientTransformation

  def transformation(
      self, learning_rate: LearningRateCallable, first_step: int
  ) -> optax.GradientTransformation:
    """See base class; both arguments are ignored."""
    del learning_rate, first_step
    return self.optax_optimizer


def wrap_optax_optimizer(
    optax_optimizer: Callable[..., optax.GradientTransformation]
) -> Callable[..., OptaxWrapper]:
  """Turns an optax constructor into one of `OptimizerDef`s, for gin."""

  @functools.wraps(optax_optimizer)
  def wrapped(*args, **kwargs) -> OptaxWrapper:
    return OptaxWrapper(optax_optimizer(*args, **kwargs))

  return wrapped


def chain(
    transformations: Sequence[optax.GradientTransformation]
) -> OptaxWrapper:
  """An `OptimizerDef` that applies optax transformations one after another."""
  return OptaxWrapper(optax.chain(*transformations))


adabelief = wrap_optax_optimizer(optax.adabelief)
adagrad = wrap_optax_optimizer(optax.adagrad)
adam = wrap_optax_optimizer(optax.adam)
adamw = wrap_optax_optimizer(optax.adamw)
fromage = wrap_optax_optimizer(optax.fromage)
lamb = wrap_optax_optimizer(optax.lamb)
lars = wrap_optax_optimizer(optax.lars)
lion = wrap_optax_optimizer(optax.lion)
noisy_sgd = wrap_optax_optimizer(optax.noisy_sgd)
radam = wrap_optax_optimizer(optax.radam)
rmsprop = wrap_optax_optimizer(optax.rmsprop)
sgd = wrap_optax_optimizer(optax.sgd)
yogi = wrap_optax_optimizer(optax.yogi)


@dataclasses.dataclass(frozen=True)
class MultiOptimizer(OptimizerDef):
  """Different optimisers for different parameters; the rest stays frozen.

  Attributes:
    traversals_and_optimizers: pairs of a `flax.traverse_util` traversal, whose
      filter sees paths with a leading `/`, and the definition that trains what
      it selects.
  """

  traversals_and_optimizers: Sequence[
      tuple[traverse_util.ModelParamTraversal, OptimizerDef]]

  def labels(self, paths: Collection[str]) -> dict[str, str]:
    """See base class.

    Raises:
      ValueError: when two traversals select the same parameter, or one selects
        none at all.
    """
    labels: dict[str, str] = {}
    for i, (traversal, _) in enumerate(self.traversals_and_optimizers):
      selected = _selected(traversal, paths)
      if twice := sorted(selected & labels.keys()):
        raise ValueError(
            f'MultiOptimizer: {twice[0]} is selected by two traversals; a '
            'parameter has exactly one optimiser.')
      labels.update(dict.fromkeys(selected, str(i)))
    return labels

  def with_axes(
      self, axes: Mapping[str, Sequence[str | None]]) -> 'MultiOptimizer':
    """See base class."""
    return dataclasses.replace(self, traversals_and_optimizers=tuple(
        (traversal, definition.with_axes(axes))
        for traversal, definition in self.traversals_and_optimizers))

  def transformation(
      self, learning_rate: LearningRateCallable, first_step: int
  ) -> optax.GradientTransformation:
    """See base class."""
    parts = {
        str(i): definition.transformation(learning_rate, first_step)
        for i, (_, definition) in enumerate(self.traversals_and_optimizers)
    }
    return optax.partition(parts, self.labels)


def _selected(
    traversal: traverse_util.ModelParamTraversal, paths: Collection[str]
) -> set[str]:
  """The paths that a traversal selects, every regex of it at least one."""
  tree = traverse_util.unflatten_dict({p: p for p in paths}, sep='/')
  selected = set(traversal.iterate(tree))
  # The filter is the only place that knows the regexes; flax keeps it private.
  keep = getattr(traversal, '_filter_fn', None)
  for regex in getattr(keep, 'regexes', ()):
    require_match(regex, paths, leading_slash=True)
  if not selected:
    raise ValueError(
        'MultiOptimizer: a traversal selects no parameter, so nothing would be '
        f'trained. The model has {_listing(paths)}.')
  return selected


def require_match(
    regex: str, paths: Collection[str], *, leading_slash: bool = False
) -> None:
  """Fails, naming the nearest paths, if a regex matches no parameter.

  Args:
    regex: matched against the whole path.
    paths: parameter paths, without a leading `/`.
    leading_slash: match against `/path`, as traversals do.

  Raises:
    ValueError: if there is no match.
  """
  prefix = '/' if leading_slash else ''
  if not any(re.fullmatch(regex, prefix + path) for path in paths):
    plain = re.sub(r'[^\w/]+', '', regex).strip('/')
    by_likeness = sorted(
        paths, reverse=True,
        key=lambda p: difflib.SequenceMatcher(None, plain, p).ratio())
    raise ValueError(
        f'The regex {regex!r} matches no parameter. Nearest: '
        f'{", ".join(prefix + p for p in by_likeness[:3])}.')


def _listing(paths: Collection[str], limit: int = 5) -> str:
  """The first few paths, and how many there are."""
  shown = ', '.join(sorted(paths)[:limit])
  return f'{len(paths)} parameters ({shown}, ...)'
