"""The nearest entries, against scikit-learn and by construction."""

import numpy as np
from prompt_tuning import interpretation
import pytest
import sklearn.neighbors
from t5x import lazy_arrays

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 6)).astype(np.float32)
PROMPT = RNG.normal(size=(7, 6)).astype(np.float32)


def table(values):
  return lazy_arrays.of_array('table', values)


@pytest.mark.parametrize('block', [1, 7, 49, 50, 1000])
def test_neighbours_are_those_of_scikit_learn(block, monkeypatch):
  monkeypatch.setattr(interpretation, '_BLOCK', block)
  found = interpretation.neighbours(100 * PROMPT, table(TABLE), 4)
  theirs = sklearn.neighbors.NearestNeighbors(
      n_neighbors=4, metric='cosine').fit(TABLE)
  distances, ids = theirs.kneighbors(PROMPT)
  np.testing.assert_array_equal(found.ids, ids)
  np.testing.assert_allclose(found.cosines, 1 - distances, atol=1e-6)
  assert found.mean_norm == pytest.approx(
      np.linalg.norm(TABLE, axis=1).mean(), rel=1e-6)


def test_rows_of_a_prompt_are_nearest_to_themselves():
  found = interpretation.neighbours(3 * TABLE[[4, 9]], table(TABLE), 1)
  assert found.ids.tolist() == [[4], [9]]
  np.testing.assert_allclose(found.cosines, 1, rtol=1e-6)


def test_empty_rows_are_near_to_nothing_and_frequent_tokens_come_first():
  values = np.concatenate([np.zeros((1, 6)), TABLE, TABLE]).astype(np.float32)
  found = interpretation.neighbours(PROMPT, table(values), 2)
  assert (found.ids[:, 1] == found.ids[:, 0] + 50).all()
  found = interpretation.neighbours(-values[1:2], table(values[:3]), 2)
  assert 0 not in found.ids


def test_labels_are_looked_for():
  found = interpretation.neighbours(TABLE[[4, 9, 4]], table(TABLE), 1)
  assert interpretation.shared_words(found, [4, 30]) == [0, 2]
  assert interpretation.shared_words(found, [30]) == []


@pytest.mark.parametrize('prompt, count, message', [
    (np.ones((2, 5)), 1, r'shape \[50, 6\], the prompt \[2, 5\]'),
    (PROMPT, 51, '51 neighbours are asked for; the table has 50'),
    (PROMPT, 0, '0 neighbours'),
    (np.stack([np.ones(6), np.zeros(6)]), 1, 'token 1 of the prompt is zero'),
])
def test_bad_input_is_named(prompt, count, message):
  with pytest.raises(ValueError, match=message):
    interpretation.neighbours(prompt, table(TABLE), count)
