import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import metrics

VALUES = np.random.default_rng(0).uniform(1, 2, 12)

# Each law: a metric of a part of the data, and what the whole must report.
LAWS = pytest.mark.parametrize('of_part,whole', [
    (lambda x: metrics.Sum(total=x.sum()), VALUES.sum()),
    (lambda x: metrics.Average(total=x.sum(), count=float(x.size)),
     VALUES.mean()),
    (lambda x: metrics.TimeRate(numerator=x.sum(), duration=float(x.size)),
     VALUES.sum() / 12),
], ids=['Sum', 'Average', 'TimeRate'])


# The same twelve values in one part, in unequal parts, one by one.
@LAWS
@pytest.mark.parametrize('cuts', [[], [5], [1, 2, 9], list(range(1, 12))])
def test_merging_parts_reports_the_whole(of_part, whole, cuts):
  parts = [{'m': of_part(part)} for part in np.split(VALUES, cuts)]
  total = None
  for part in parts:
    total = metrics.merge(total, part)
  np.testing.assert_allclose(metrics.compute(total)['m'], whole, rtol=1e-12)


@LAWS
def test_merging_works_inside_jit(of_part, whole):
  left, right = (
      jax.tree.map(jnp.float32, {'m': of_part(part)})
      for part in np.split(VALUES, [7]))
  merged = jax.jit(metrics.merge)(left, right)
  np.testing.assert_allclose(metrics.compute(merged)['m'], whole, rtol=1e-6)


def test_per_step_metrics_divide_by_the_steps_not_by_the_rows():
  steps = [{'norm': metrics.AveragePerStep(total=t),
            'speed': metrics.StepsPerTime()} for t in (3.0, 5.0, 10.0)]
  total = None
  for step in steps:
    total = metrics.merge(total, step)
  reported = metrics.compute(metrics.set_time(total, 1.5))
  assert reported == {'norm': 6.0, 'speed': 2.0}


# Four microbatches are one step: sums are kept, steps are counted once.
def test_as_one_step_counts_the_microbatches_of_a_step_once():
  micro = {'loss': metrics.Sum(total=1.5),
           'accuracy': metrics.Average(total=1.0, count=2.0),
           'norm': metrics.AveragePerStep(total=2.0),
           'tokens': metrics.TimeRate(numerator=10.0),
           'speed': metrics.StepsPerTime()}
  step = None
  for _ in range(4):
    step = metrics.merge(step, micro)
  step = metrics.as_one_step(step)
  two_steps = metrics.set_time(metrics.merge(step, step), 4.0)
  assert metrics.compute(two_steps) == {
      'loss': 12.0, 'accuracy': 0.5, 'norm': 8.0, 'tokens': 20.0,
      'speed': 0.5}


@pytest.mark.parametrize('rate', [
    metrics.TimeRate(numerator=6.0), metrics.StepsPerTime(numerator=6.0)])
def test_rates_need_their_duration(rate):
  with pytest.raises(ValueError, match='duration'):
    rate.compute()
  with pytest.raises(ValueError, match='duration'):
    metrics.compute({'rate': rate.merge(rate)})
  assert metrics.compute(metrics.set_time({'rate': rate}, 3.0)) == {'rate': 2.0}


def test_set_time_leaves_other_metrics_alone():
  plain = {'loss': metrics.Sum(total=2.0),
           'norm': metrics.AveragePerStep(total=4.0, steps=2.0)}
  assert metrics.set_time(plain, 7.0) == plain


def test_nothing_counted_reports_zero():
  assert metrics.Average(total=0.0, count=0.0).compute() == 0.0


# 2^24 + 1 is not a float32, so a sum kept in float32 would stand still.
def test_sums_on_the_host_are_exact():
  one = metrics.to_host({'tokens': metrics.Sum(total=jnp.float32(1.0))})
  many = metrics.to_host({'tokens': metrics.Sum(total=jnp.float32(2.0**24))})
  assert metrics.compute(metrics.merge(many, one)) == {'tokens': 2.0**24 + 1}


@pytest.mark.parametrize('first,second', [
    ({'loss'}, {'loss', 'other'}), ({'loss', 'other'}, {'loss'})])
def test_merging_needs_the_same_keys(first, second):
  with pytest.raises(KeyError, match='other'):
    metrics.merge({name: metrics.Sum(1.0) for name in first},
                  {name: metrics.Sum(1.0) for name in second})
