import numpy as np
from prompt_tuning.spot import mixing
import pytest

SIMILARITY = {'a': 0.2, 'b': 0.6, 'c': -0.1, 'd': 0.4}


def test_weights_are_shares_of_the_similarity():
  assert mixing.similarity_weights(SIMILARITY, 3) == pytest.approx(
      {'b': 0.5, 'd': 1 / 3, 'a': 1 / 6})
  assert mixing.similarity_weights(SIMILARITY, 1) == {'b': 1.0}


@pytest.mark.parametrize('k, message', [
    (0, 'k is 0'), (5, 'there are 4'),
    (4, "'c' has similarity -0.1.*3 of the prompts")])
def test_weights_that_cannot_be(k, message):
  with pytest.raises(ValueError, match=message):
    mixing.similarity_weights(SIMILARITY, k)


def test_average_is_the_sum_of_weighted_prompts():
  prompts = np.random.default_rng(0).normal(size=(3, 4, 5))
  found = mixing.weighted_average(prompts, [1.0, 2.0, 5.0])
  assert found.dtype == np.float32
  np.testing.assert_allclose(
      found, prompts[0] / 8 + prompts[1] / 4 + prompts[2] * 5 / 8, rtol=1e-6)
  np.testing.assert_allclose(
      mixing.weighted_average(prompts), prompts.mean(0), rtol=1e-5)
  np.testing.assert_array_equal(
      mixing.weighted_average(prompts[:1], [0.3]),
      prompts[0].astype(np.float32))


@pytest.mark.parametrize('prompts, weights, message', [
    ([], None, 'no mean'),
    ([np.ones((2, 3)), np.ones((4, 3))], None, r'\[\[2, 3\], \[4, 3\]\]'),
    ([np.ones(3)], None, r'\[\[3\]\]'),
    ([np.ones((2, 3))], [1.0, 2.0], 'do not fit 1'),
    ([np.ones((2, 3))] * 2, [1.0, -1.0], 'sum that is not zero'),
    ([np.ones((2, 3))] * 2, [1.0, np.nan], 'do not fit'),
    ([np.ones((2, 3)), np.full((2, 3), np.nan)], None, 'prompt 1 has values'),
])
def test_averages_that_cannot_be(prompts, weights, message):
  with pytest.raises(ValueError, match=message):
    mixing.weighted_average(prompts, weights)
