"""Adafactor with T5X's arguments, factoring rules and absolute step.

Noam Shazeer and Mitchell Stern, "Adafactor: Adaptive Learning Rates with
Sublinear Memory Cost", ICML 2018. What T5X adds to the paper is the step that
the second-moment decay sees: the absolute step of the run, pretraining
included. At step 1,100,000 the decay is 0.999985, so the accumulator of a fresh
prompt behaves like Adagrad's sum, and the clip at RMS 1 stays active for about
the first 68,000 steps. Counting from zero is another algorithm.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax
from t5x import optimizers


class FactorDim(enum.Enum):
  """How the second moment of one parameter axis is stored."""

  NONE = 'none'
  BATCH = 'batch'
  ROW = 'row'
  COLUMN = 'column'


# In the place of a rule: factor the two longest axes of a matrix.
HEURISTIC_RULE = 'HEURISTIC'

FactorRules = Mapping[str, FactorDim]


def factor_name_to_factordim(name: str | FactorDim) -> FactorDim:
  """A role by the name that configurations give it.

  Raises:
    ValueError: for a name that is none.
  """
  if isinstance(name, FactorDim):
    return name
  names = {'row': FactorDim.ROW, 'col': FactorDim.COLUMN,
           'column': FactorDim.COLUMN, 'batch': FactorDim.BATCH,
           'none': FactorDim.NONE, 'unfactorized': FactorDim.NONE}
  if name.lower() not in names:
    raise ValueError(
        f'{name!r} is no role of an axis in Adafactor; expected one of '
        f'{", ".join(names)}.')
  return names[name.lower()]


def standard_logical_factor_rules() -> FactorRules:
  """T5X's table from logical axis to the role it has in factoring."""
  columns = ('vocab', 'mlp', 'heads', 'kv', 'joined_kv', 'q_wi_fused',
             'o_wo_fused', 'multiquery_heads', 'kv_fused', 'mlp_activations')
  return {
      **{axis: FactorDim.COLUMN for axis in columns},
      'embed': FactorDim.ROW,
      'relpos_buckets': FactorDim.NONE,
      'layer_norm_scale': FactorDim.NONE,
      'layers': FactorDim.BATCH,
      'stack': FactorDim.BATCH,
  }


@dataclasses.dataclass(frozen=True)
class HParamMap:
  """A setting that differs between parameters.

  Attributes:
    rules: pairs of a regex, searched for in the parameter's path, and a value;
      the first that is found wins.
  """

  rules: Sequence[tuple[str, Any]]

  @functools.cached_property
  def _patterns(self) -> Sequence[tuple[re.Pattern[str], Any]]:
    """The rules compiled: a deep model has more than `re` remembers."""
    return [(re.compile(regex), value) for regex, value in self.rules]

  def __getitem__(self, path: str) -> Any:
    """The value of a parameter.

    Raises:
      ValueError: if no rule is for it.
    """
    for pattern, value in self._patterns:
      if pattern.search(path):
        return value
    raise ValueError(
        f'adafactor.HParamMap has no rule for the parameter {path!r}; add one, '
        "for instance ('.*', VALUE) at the end.")


class Axes(NamedTuple):
  """The axes of one parameter by role; none of them is factored if empty.

  Attributes:
    rows: averaged out of the column factor.
    columns: averaged out of the row factor.
    batch: every index of them is a parameter of its own, as in a scanned stack.
  """

  rows: tuple[int, ...] = ()
  columns: tuple[int, ...] = ()
  batch: tuple[int, ...] = ()


class Slots(NamedTuple):
  """T5X's state of one parameter; what is not used has the shape `[1]`."""

  v_row: Array
  v_col: Array
  v: Array
  m: Array


class AdafactorState(NamedTuple):
  """The state of all parameters.

  Attributes:
    steps: how many this run has made.
    slots: `Slots` by path.
  """

  steps: Int[Array, '']
  slots: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(optimizers.OptimizerDef):
  """Adafactor with T5X's arguments, defaults and absolute step.

  With `g` the gradient, `t` the absolute step minus `step_offset` and `lr` the
  trainer's learning rate:

    v = b v + (1 - b) (g^2 + epsilon1),        b = 1 - (t + 1)^-decay_rate
    u = g / sqrt(v);  u = u / max(1, RMS(u) / clipping_threshold)
    u = lr u                 (lr max(RMS(p), epsilon2) u with scaling on)
    p = (1 - weight_decay_rate) p - u

  `v` is kept as the product of its means over rows and over columns where that
  is shorter. A parameter of one or two axes is factored when both have at least
  `min_dim_size_to_factor` entries, whatever a rule says, unless one of them is
  a batch axis; one of more axes as its rule says. Means and RMS leave batch
  axes out, so every layer of a scanned stack is treated as if it stood alone.

  Attributes:
    learning_rate: accepted as in T5X, where the trainer's schedule replaces it.
    factored: factor the second moment.
    multiply_by_parameter_scale: multiply the step by the parameter's RMS; a
      bool, or an `HParamMap` of them.
    beta1: momentum; None switches it off.
    decay_rate: exponent of the second-moment decay.
    step_offset: subtracted from the absolute step.
    clipping_threshold: largest RMS of an update; None switches it off.
    weight_decay_rate: decay per step, not multiplied by the learning rate.
    min_dim_size_to_factor: shortest axis that is factored without a rule.
    epsilon1: added to the squared gradient.
    epsilon2: smallest scale of a parameter.
    dtype_momentum: dtype of the momentum.
    factor_map: an `HParamMap` from path to a role per axis (`FactorDim` or its
      name) or `HEURISTIC_RULE`; replaces `logical_factor_rules`.
    logical_factor_rules: from logical axis to role.
    weight_decay_rate_lr_exponent: multiply the decay by the learning rate to
      this power; None does not.
    global_norm_clip_threshold: clips the gradients' global norm first.
    max_parameter_scale: largest scale of a parameter; None for no limit.
    skip_nan_updates: leave parameters and state alone at a step whose update is
      not finite. The trainer stops at such a step anyway.
  """

  learning_rate: float | None = None
  factored: bool = True
  multiply_by_parameter_scale: bool | HParamMap = True
  beta1: float | None = None
  decay_rate: float = 0.8
  step_offset: int = 0
  clipping_threshold: float | None = 1.0
  weight_decay_rate: float | None = None
  min_dim_size_to_factor: int = 128
  epsilon1: float = 1e-30
  epsilon2: float = 1e-3
  dtype_momentum: str = 'float32'
  factor_map: HParamMap | None = None
  logical_factor_rules: FactorRules | None = None
  weight_decay_rate_lr_exponent: float | None = None
  global_norm_clip_threshold: float | None = None
  max_parameter_scale: float | None = None
  skip_nan_updates: bool = False

  def with_axes(
      self, axes: Mapping[str, Sequence[str | None]]) -> 'Adafactor':
    """See base class: the logical rules become a rule per parameter.

    Raises:
      ValueError: for an axis of a stacked parameter that has no rule.
    """
    if self.factor_map is not None or self.logical_factor_rules is None:
      return self
    rules = [(f'^{re.escape(path)}$', self._rule(path, names))
             for path, names in axes.items()]
    return dataclasses.replace(self, factor_map=HParamMap(rules))

  def _rule(self, path: str, names: Sequence[str | None]) -> Any:
    """The rule that the logical axes of one parameter make."""
    known = self.logical_factor_rules or {}
    if missing := [name for name in names if name not in known]:
      if len(names) <= 2:
        return HEURISTIC_RULE
      raise ValueError(
          f'Adafactor: the axis {missing[0]!r} of {path} has no role; add it '
          'to logical_factor_rules.')
    return tuple(known[name] for name in names if name is not None)

  def _axes(self, path: str, shape: tuple[int, ...]) -> Axes:
    """What is factored of a parameter, by its rule or by its shape."""
    rule = HEURISTIC_RULE
    if self.factor_map is not None:
      rule = self.factor_map[path]
    if rule is None or isinstance(rule, str):
      return self._longest(shape)
    if len(rule) != len(shape):
      raise ValueError(
          f'Adafactor.factor_map has {len(rule)} roles for {path}, which has '
          f'{len(shape)} axes.')
    roles = [factor_name_to_factordim(name) for name in rule]

    def of(role: FactorDim) -> tuple[int, ...]:
      return tuple(i for i, r in enumerate(roles) if r is role)

    batch = of(FactorDim.BATCH)
    if len(shape) <= 2 and not batch:
      return self._longest(shape)
    rows, columns = of(FactorDim.ROW), of(FactorDim.COLUMN)
    if not (rows and columns) or not self.factored:
      return Axes(batch=batch)
    if of(FactorDim.NONE):
      raise ValueError(
          f'Adafactor: {path} has axes to factor and axes not to factor in '
          f'{[role.value for role in roles]}; make the latter batch axes.')
    return Axes(rows, columns, batch)

  def _longest(self, shape: tuple[int, ...]) -> Axes:
    """The longest axis as column and the next one as row, if long enough."""
    order = sorted(range(len(shape)), key=lambda i: shape[i])
    if not self.factored or len(shape) < 2 or (
        shape[order[-2]] < self.min_dim_size_to_factor):
      return Axes()
    return Axes((order[-2],), (order[-1],), tuple(sorted(order[:-2])))

  def transformation(
      self, learning_rate: Callable, first_step: int
  ) -> optax.GradientTransformation:
    """See base class: both the decay and the rate see the absolute step."""

    def init(params: Any) -> AdafactorState:
      return AdafactorState(
          jnp.zeros((), jnp.int32),
          jax.tree_util.tree_map_with_path(self._init_slots, params))

    def update(grads: Any, state: AdafactorState, params: Any = None):
      step = state.steps + first_step
      moment = 1.0 - (step - self.step_offset + 1).astype(
          jnp.float32) ** -self.decay_rate
      rate = jnp.asarray(learning_rate(step), jnp.float32)
      tree: Any
      paths, tree = jax.tree_util.tree_flatten_with_path(params)
      done = [
          self._update(_name(path), g, slots, p, moment, rate)
          for (path, p), g, slots in zip(
              paths, tree.flatten_up_to(grads),
              tree.flatten_up_to(state.slots), strict=True)]
      new = AdafactorState(
          state.steps + 1, tree.unflatten(slots for _, slots in done))
      return tree.unflatten(change for change, _ in done), new

    rule = optax.GradientTransformation(init, update)
    if self.global_norm_clip_threshold is not None:
      clip = optax.clip_by_global_norm(self.global_norm_clip_threshold)
      rule = optax.chain(clip, rule)
    if self.skip_nan_updates:
      rule = optax.apply_if_finite(rule, max_consecutive_errors=2**31 - 1)
    return rule

  def _init_slots(self, path: Any, p: Array) -> Slots:
    """T5X's slots of one parameter, zero."""
    axes = self._axes(_name(path), p.shape)

    def without(left_out: tuple[int, ...]) -> Array:
      return jnp.zeros([n for i, n in enumerate(p.shape) if i not in left_out])

    unused = jnp.zeros((1,))
    return Slots(
        v_row=without(axes.columns) if axes.rows else unused,
        v_col=without(axes.rows) if axes.rows else unused,
        v=unused if axes.rows else jnp.zeros(p.shape),
        m=(unused if self.beta1 is None
           else jnp.zeros(p.shape, jnp.dtype(self.dtype_momentum))))

  def _update(
      self, path: str, g: Array, slots: Slots, p: Array,
      moment: Float[Array, ''], rate: Float[Array, ''],
  ) -> tuple[Array, Slots]:
    """What is added to one parameter, and its slots after the step."""
    axes = self._axes(path, p.shape)
    rest = tuple(i for i in range(p.ndim) if i not in axes.batch)
    g, old = g.astype(jnp.float32), p.astype(jnp.float32)
    y, slots = _normalised(g, slots, axes, moment, self.epsilon1)
    if self.clipping_threshold is not None:
      y = y / jnp.maximum(1.0, _rms(y, rest) / self.clipping_threshold)
    change = rate * y
    if self._scales(path):
      scale = jnp.maximum(_rms(old, rest), self.epsilon2)
      if self.max_parameter_scale is not None:
        scale = jnp.minimum(scale, self.max_parameter_scale)
      change = scale * change
    if self.beta1 is not None:
      change = self.beta1 * slots.m.astype(jnp.float32) + (
          1.0 - self.beta1) * change
      slots = slots._replace(m=change.astype(slots.m.dtype))
    if self.weight_decay_rate is not None:
      decay: Any = self.weight_decay_rate
      if self.weight_decay_rate_lr_exponent is not None:
        decay = decay * rate ** self.weight_decay_rate_lr_exponent
      change = change + decay * old
    return -change, slots

  def _scales(self, path: str) -> bool:
    """Whether a parameter's step is multiplied by its RMS."""
    choice = self.multiply_by_parameter_scale
    return bool(choice[path] if isinstance(choice, HParamMap) else choice)


def _name(path: Any) -> str:
  """A parameter's path from its place in the tree."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _rms(x: Array, axes: tuple[int, ...]) -> Array:
  """The root of the mean square over some axes, which are kept as 1."""
  return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))


def _normalised(
    g: Array, slots: Slots, axes: Axes, moment: Float[Array, ''],
    epsilon: float,
) -> tuple[Array, Slots]:
  """The gradient over the root of its second moment, and the new moment."""
  squared = jnp.square(g) + epsilon

  def average(old: Array, new: Array) -> Array:
    return moment * old + (1.0 - moment) * new

  if not axes.rows:
    v = average(slots.v, squared)
    return g / jnp.sqrt(v), slots._replace(v=v)
  v_row = average(slots.v_row, jnp.mean(squared, axis=axes.columns))
  v_col = average(slots.v_col, jnp.mean(squared, axis=axes.rows))
  row = jnp.expand_dims(v_row, axes.columns)
  column = jnp.expand_dims(v_col, axes.rows)
  share = row / jnp.mean(row, axis=axes.rows, keepdims=True)
  y = g / (jnp.sqrt(share) * jnp.sqrt(column))
  return y, slots._replace(v_row=v_row, v_col=v_col)
