import dataclasses
import json
import pathlib

import pytest
from t5x import checkpoints
from t5x import hugging_face
from t5x import hugging_face_config
from t5x.examples.t5 import network

ROOT = pathlib.Path(__file__).parents[2]
# What the hub's files say of these models: the published sizes.
HUB = {
    't5-base': ({
        'd_ff': 3072, 'd_kv': 64, 'd_model': 768, 'model_type': 't5',
        'architectures': ['T5WithLMHeadModel'], 'num_heads': 12,
        'num_layers': 12, 'relative_attention_num_buckets': 32,
        'vocab_size': 32128, 'task_specific_params': {'summarization': {
            'early_stopping': True, 'prefix': 'summarize: '}}},
                network.T5Config(
                    vocab_size=32128, emb_dim=768, num_heads=12, head_dim=64,
                    mlp_dim=3072, mlp_activations=('relu',),
                    logits_via_embedding=True, num_encoder_layers=12,
                    num_decoder_layers=12)),
    'byt5-small': ({
        'd_ff': 3584, 'd_kv': 64, 'd_model': 1472, 'model_type': 't5',
        'feed_forward_proj': 'gated-gelu', 'num_heads': 6, 'num_layers': 12,
        'num_decoder_layers': 4, 'tie_word_embeddings': False,
        'tokenizer_class': 'ByT5Tokenizer', 'vocab_size': 384,
        'gradient_checkpointing': False},
                   network.T5Config(
                       vocab_size=384, emb_dim=1472, num_heads=6, head_dim=64,
                       mlp_dim=3584, mlp_activations=('gelu', 'linear'),
                       logits_via_embedding=False, num_encoder_layers=12,
                       num_decoder_layers=4)),
    'mt5-small': ({
        'd_ff': 1024, 'd_kv': 64, 'd_model': 512, 'model_type': 'mt5',
        'num_heads': 6, 'num_layers': 8, 'num_decoder_layers': None,
        'vocab_size': 250112},
                  network.T5Config(
                      vocab_size=250112, emb_dim=512, num_heads=6, head_dim=64,
                      mlp_dim=1024, mlp_activations=('gelu', 'linear'),
                      logits_via_embedding=False, num_encoder_layers=8,
                      num_decoder_layers=8)),
}


@pytest.mark.parametrize('name', HUB)
def test_the_config_of_published_models(name):
  written, expected = HUB[name]
  assert hugging_face_config.parse(written, name) == expected


# Which head a model has: model_type, tie_word_embeddings,
# scale_decoder_outputs, and whether it scores with its table, scaled.
@pytest.mark.parametrize('kind,tied,scales,expected', [
    ('t5', None, None, True), ('t5', True, None, True),
    ('t5', False, None, False),
    # As transformers 5 writes T5 1.0 and T5 1.1.
    ('t5', True, True, True), ('t5', True, False, False),
    ('t5', False, True, True), ('t5', False, False, False),
    ('t5', None, False, False),
    ('mt5', None, None, False), ('mt5', True, None, False),
    ('mt5', False, None, False)])
def test_which_head_a_model_has(theirs, kind, tied, scales, expected):
  written = theirs.CONFIG | {'model_type': kind}
  del written['tie_word_embeddings']
  if tied is not None:
    written['tie_word_embeddings'] = tied
  if scales is not None:
    written['scale_decoder_outputs'] = scales
  assert hugging_face_config.parse(
      written, 'it').logits_via_embedding is expected


# A change of config.json, and what the error says.
HOSTILE = [
    ({'auto_map': {'AutoModel': 'evil--evil.Model'}}, 'auto_map'),
    ({'task_specific_params': {'a': [{'auto_map': {}}]}}, 'auto_map'),
    ({'custom_pipelines': {}}, 'custom_pipelines'),
    ({'trust_remote_code': True}, 'trust_remote_code'),
    ({'_attn_implementation_internal': 'evil/kernel'}, '_internal'),
    ({'quantization_config': {'quant_method': 'x'}}, 'quantization_config'),
    ({'model_type': 'llama'}, "model_type 'llama'"),
    ({'model_type': 'umt5'}, "model_type 'umt5'"),
    ({'model_type': ['t5']}, 'model_type'), ({'model_type': None}, 'None'),
    ({'d_model': '512'}, "d_model '512'"), ({'d_model': 8.0}, r"'8\.0'"),
    ({'d_model': True}, "'True'"), ({'d_model': -8}, "'-8'"),
    ({'d_model': 0}, "'0'"), ({'d_model': None}, "'None'"),
    ({'d_model': 2**40}, '1 to 131,072'), ({'num_layers': 10**6}, '1 to 1,024'),
    ({'vocab_size': 2**31}, 'vocab_size'), ({'num_heads': [2]}, 'num_heads'),
    ({'num_decoder_layers': -1}, 'num_decoder_layers'),
    ({'num_decoder_layers': False}, 'num_decoder_layers'),
    ({'relative_attention_num_buckets': 0}, 'num_buckets'),
    ({'relative_attention_max_distance': 'x'}, 'max_distance'),
    ({'feed_forward_proj': 'gated-evil'}, 'gated-evil'),
    ({'feed_forward_proj': 'gelu'}, "'gelu'; expected one of"),
    ({'feed_forward_proj': ['relu']}, 'feed_forward_proj'),
    ({'dense_act_fn': 'silu'}, "dense_act_fn 'silu'"),
    ({'is_gated_act': False}, 'is_gated_act'),
    ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon'),
    ({'is_encoder_decoder': False}, 'is_encoder_decoder'),
    ({'tie_word_embeddings': 'no'}, 'tie_word_embeddings'),
    ({'scale_decoder_outputs': 1}, 'scale_decoder_outputs'),
]


@pytest.mark.parametrize('changes,says', HOSTILE)
def test_a_hostile_config_is_refused(theirs, tmp_path, changes, says):
  tensors = theirs.tensors(theirs.CONFIG)
  theirs.write(tmp_path, changes, tensors)
  with pytest.raises(checkpoints.CheckpointError, match=says) as error:
    checkpoints.open_checkpoint(str(tmp_path))
  assert 'config.json' in str(error.value)


@pytest.mark.parametrize('key', ['auto_map', 'quantization_config'])
def test_a_key_that_is_not_set_is_not_refused(theirs, tmp_path, key):
  theirs.write(tmp_path / 'a')
  theirs.write(tmp_path / 'b', {key: None})
  assert hugging_face_config.read(tmp_path / 'a') == hugging_face_config.read(
      tmp_path / 'b')


@pytest.mark.parametrize('key', ['d_model', 'vocab_size', 'd_ff', 'd_kv',
                                 'num_heads', 'num_layers', 'model_type'])
def test_a_size_that_is_not_there_is_not_guessed(theirs, key):
  written = {k: v for k, v in theirs.CONFIG.items() if k != key}
  with pytest.raises(checkpoints.CheckpointError, match=key):
    hugging_face_config.parse(written, 'it')


@pytest.mark.parametrize('content', ['', '{', '[]', '{"model_type": NaN}',
                                     '{"model_type": "t5", "d_model": 8, '
                                     '"d_model": 9}'])
def test_a_broken_config_is_refused(theirs, tmp_path, content):
  theirs.write(tmp_path)
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(checkpoints.CheckpointError, match=r'config\.json'):
    checkpoints.open_checkpoint(str(tmp_path))


@pytest.mark.parametrize('changes', [
    {}, {'mlp_activations': ('relu',), 'logits_via_embedding': True},
    {'mlp_activations': ('silu', 'linear')}, {'relpos_max_distance': 20}])
def test_a_config_is_read_as_it_was_written(tiny, changes):
  config = dataclasses.replace(
      tiny.config(num_decoder_layers=3), dropout_rate=0.1, **changes)
  assert hugging_face_config.parse(
      json.loads(json.dumps(hugging_face_config.to_json(config))),
      'it') == config


def test_a_config_that_they_do_not_have_is_not_written(tiny):
  with pytest.raises(checkpoints.CheckpointError, match='tanh'):
    hugging_face_config.to_json(tiny.config(mlp_activations=('tanh',)))


FIELDS = {
    'vocab_size': 33, 'emb_dim': 9, 'num_heads': 4, 'head_dim': 5,
    'mlp_dim': 17, 'num_encoder_layers': 3, 'num_decoder_layers': 2,
    'relpos_num_buckets': 16, 'relpos_max_distance': 64,
    'mlp_activations': ('relu',), 'logits_via_embedding': True}


@pytest.mark.parametrize('field', FIELDS)
def test_a_network_of_another_config_is_named_with_both_values(
    theirs, tiny, tmp_path, field):
  theirs.write(tmp_path)
  model = tiny.model(num_decoder_layers=3)
  hugging_face.require_same_model(str(tmp_path), model)
  changed = tiny.model(**{'num_decoder_layers': 3, field: FIELDS[field]})
  with pytest.raises(checkpoints.CheckpointError) as error:
    hugging_face.require_same_model(str(tmp_path), changed)
  wanted = getattr(model.module.config, field)
  assert (f'T5Config.{field} is {FIELDS[field]!r} but should be {wanted!r}. '
          'Give models/hugging_face_prompt.gin') in str(error.value)


def test_all_fields_that_differ_are_in_one_error(theirs, tiny, tmp_path):
  theirs.write(tmp_path)
  with pytest.raises(checkpoints.CheckpointError) as error:
    hugging_face.require_same_model(str(tmp_path), tiny.model(
        num_decoder_layers=3, vocab_size=64, mlp_dim=32))
  assert ('vocab_size is 64 but should be 32, mlp_dim is 32 but should be 16'
          in str(error.value))


def test_how_it_is_run_may_differ(theirs, tiny, tmp_path):
  theirs.write(tmp_path)
  hugging_face.require_same_model(str(tmp_path), tiny.model(
      num_decoder_layers=3, dtype='bfloat16', dropout_rate=0.3,
      scan_layers=True, mlp_activations=['gelu', 'linear']))
