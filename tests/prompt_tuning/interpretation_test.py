"""The nearest entries, by definition and by construction."""

import numpy as np
from prompt_tuning import interpretation
import pytest
from t5x import lazy_arrays

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 6)).astype(np.float32)
PROMPT = RNG.normal(size=(7, 6)).astype(np.float32)


def table(values):
  return lazy_arrays.of_array('table', values)


def test_neighbours_are_the_greatest_cosines():
  found = interpretation.neighbours(100 * PROMPT, table(TABLE), 4)
  for place, token in enumerate(PROMPT):
    cosines = [token @ row / np.linalg.norm(token) / np.linalg.norm(row)
               for row in TABLE]
    best = np.argsort(cosines)[::-1][:4].tolist()
    assert found.ids[place].tolist() == best
    np.testing.assert_allclose(
        found.cosines[place], [cosines[i] for i in best], atol=1e-6)
  assert found.mean_norm == pytest.approx(
      np.mean([np.sqrt(row @ row) for row in TABLE]), rel=1e-6)


def test_rows_of_a_prompt_are_nearest_to_themselves():
  found = interpretation.neighbours(3 * TABLE[[4, 9]], table(TABLE), 1)
  assert found.ids.tolist() == [[4], [9]]
  np.testing.assert_allclose(found.cosines, 1, rtol=1e-6)


def test_labels_are_looked_for():
  # Each has others beside itself.
  found = interpretation.neighbours(TABLE[[4, 9, 4]], table(TABLE), 2)
  assert found.ids[:, 0].tolist() == [4, 9, 4]
  assert interpretation.places_near(found, [4]) == [0, 2]
  absent = next(i for i in range(50) if i not in found.ids)
  assert interpretation.places_near(found, [absent]) == []


@pytest.mark.parametrize('prompt, count, message', [
    (np.ones((2, 5)), 1, r'shape \[50, 6\], the prompt \[2, 5\]'),
    (PROMPT, 51, '51 neighbours are asked for; the table has 50'),
    (PROMPT, 0, '0 neighbours'),
    (np.stack([np.ones(6), np.zeros(6)]), 1, 'token 1 of the prompt is zero'),
])
def test_bad_input_is_named(prompt, count, message):
  with pytest.raises(ValueError, match=message):
    interpretation.neighbours(prompt, table(TABLE), count)
