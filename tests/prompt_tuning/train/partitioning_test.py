import jax
import numpy as np
from prompt_tuning.train import partitioning as prompt_partitioning
import pytest
from t5x import partitioning

AXES = ('prompt', 'prompt_embed')


# Over (data, model) = (4, 2), and with everything cut that can be.
@pytest.mark.parametrize('activations', [1, 2])
@pytest.mark.parametrize('parameters', [1, 2])
def test_prompt_is_whole_on_every_device(activations, parameters):
  rules = partitioning.standard_logical_axis_rules(
      activations, parameters,
      additional_rules=prompt_partitioning.standard_logical_axis_rules())
  partitioner = partitioning.PjitPartitioner(2, logical_axis_rules=rules)
  values = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
  placed = jax.device_put(values, partitioner.sharding(AXES))
  assert len(placed.addressable_shards) == 8
  for shard in placed.addressable_shards:
    np.testing.assert_array_equal(shard.data, values)
  # The other axes keep T5X's rules.
  assert not partitioner.sharding(('embed', 'mlp')).is_fully_replicated


def test_prompt_has_no_place_without_these_rules():
  partitioner = partitioning.PjitPartitioner(1)
  with pytest.raises(ValueError, match="'prompt'.*additional_rules"):
    partitioner.sharding(AXES)
