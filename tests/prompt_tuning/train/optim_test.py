import jax
import jax.numpy as jnp
from prompt_tuning.train import optim
import pytest
from t5x import adafactor

NONE, BATCH = adafactor.FactorDim.NONE, adafactor.FactorDim.BATCH
ROW, COLUMN = adafactor.FactorDim.ROW, adafactor.FactorDim.COLUMN
PROMPT_RULES = {'prompt': NONE, 'tasks': NONE, 'prompt+embed': NONE,
                'prompt_embed': NONE, 'batch': BATCH}


def test_rules_are_those_of_t5x_and_the_prompts():
  assert optim.standard_logical_factor_rules() == PROMPT_RULES | {
      'vocab': COLUMN, 'embed': ROW, 'mlp': COLUMN, 'heads': COLUMN,
      'kv': COLUMN, 'joined_kv': COLUMN, 'relpos_buckets': NONE,
      'layers': BATCH, 'stack': BATCH, 'q_wi_fused': COLUMN,
      'o_wo_fused': COLUMN, 'multiquery_heads': COLUMN, 'kv_fused': COLUMN,
      'layer_norm_scale': NONE, 'mlp_activations': COLUMN}


def test_rules_that_are_given_stay():
  given = {'experts': BATCH, 'prompt': ROW}
  rules = optim.standard_logical_factor_rules(given)
  assert rules == PROMPT_RULES | {'experts': BATCH}
  assert given == {'experts': BATCH, 'prompt': ROW}


# What Adafactor keeps for a prompt: P x H numbers, or P + H.
@pytest.mark.parametrize('length,kept', [
    (1, [(1, 768)]), (100, [(100, 768)]), (127, [(127, 768)]),
    (128, [(128,), (768,)]), (150, [(150,), (768,)])])
def test_prompts_of_128_vectors_are_factored(length, kept):
  definition = adafactor.Adafactor(
      logical_factor_rules=optim.standard_logical_factor_rules())
  state = jax.eval_shape(
      definition.transformation(lambda step: jnp.float32(0.3), 0).init,
      {'prompt': jax.ShapeDtypeStruct((length, 768), jnp.float32)})
  shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 1]
  assert sorted(shapes) == kept
