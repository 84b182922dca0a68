"""Adapters that PEFT itself writes and loads; run where it is installed."""

import json
import pathlib
import shutil

import jax
import numpy as np
from prompt_tuning import prompts
from prompt_tuning.demo import tasks
from prompt_tuning.interop import peft as our_peft
import pytest
import sentencepiece
import seqio

peft = pytest.importorskip('peft')
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore:::(torch|transformers|peft)')]

P, H, V = 5, 16, 64
INPUTS = torch.tensor([[7, 9, 30, 5, 1], [12, 3, 1, 0, 0]])


def model(vocab_size=V):
  """A random T5, the same every time."""
  torch.manual_seed(0)
  return transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=vocab_size, d_model=H, d_kv=4, d_ff=24, num_layers=2,
      num_heads=4, decoder_start_token_id=0, pad_token_id=0,
      # Large enough that the prompt decides what is decoded.
      initializer_factor=1.5)).eval()


def prompted(make=peft.PromptTuningConfig, **options):
  """A model with a prompt that is not what it is made as."""
  made = peft.get_peft_model(model(), make(
      task_type='SEQ_2_SEQ_LM', num_virtual_tokens=P, **options))
  with torch.no_grad():
    for values in made.prompt_encoder.parameters():
      values.add_(torch.randn(
          values.shape, generator=torch.Generator().manual_seed(1)))
  return made.eval()


def generated(made):
  with torch.no_grad():
    return made.generate(
        input_ids=INPUTS, attention_mask=(INPUTS > 0).long(), do_sample=False,
        max_new_tokens=12).numpy()


CONFIGS = {
    'one submodule': (peft.PromptTuningConfig, {
        'num_transformer_submodules': 1}),
    'two submodules': (peft.PromptTuningConfig, {}),
    'a network': (peft.PromptEncoderConfig, {'encoder_hidden_size': 8}),
    'a network, two submodules': (peft.PromptEncoderConfig, {
        'encoder_hidden_size': 8, 'num_transformer_submodules': 2}),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_their_adapter_is_read_and_ours_generates_the_same(tmp_path, name):
  make, options = CONFIGS[name]
  theirs = prompted(make, **options)
  theirs.save_pretrained(str(tmp_path / 'theirs'))
  found = our_peft.read(tmp_path / 'theirs')
  with torch.no_grad():
    used = theirs.get_prompt(batch_size=1)[0, :P].numpy()
  np.testing.assert_array_equal(found.prompt, used, strict=True)

  our_peft.write(tmp_path / 'ours', found.prompt)
  ours = peft.PeftModel.from_pretrained(
      model(), str(tmp_path / 'ours')).eval()
  expected = generated(theirs)
  np.testing.assert_array_equal(generated(ours), expected)
  # Another prompt would be noticed.
  our_peft.write(tmp_path / 'other', found.prompt[::-1])
  other = peft.PeftModel.from_pretrained(model(), str(tmp_path / 'other'))
  assert not np.array_equal(generated(other.eval()), expected)


def test_the_second_half_is_never_used(tmp_path):
  theirs = prompted()
  expected = generated(theirs)
  with torch.no_grad():
    theirs.prompt_encoder['default'].embedding.weight[P:] += 100
  np.testing.assert_array_equal(generated(theirs), expected)


def test_what_they_write_of_our_adapter_says_the_same(tmp_path):
  values = np.random.default_rng(0).normal(size=(P, H)).astype(np.float32)
  our_peft.write(tmp_path / 'ours', values, base_model='some/t5')
  peft.PeftModel.from_pretrained(
      model(), str(tmp_path / 'ours')).save_pretrained(
          str(tmp_path / 'theirs'))
  np.testing.assert_array_equal(
      our_peft.read(tmp_path / 'theirs').prompt, values)
  first, second = (json.loads((tmp_path / name / our_peft.CONFIG).read_text())
                   for name in ('ours', 'theirs'))
  assert first.items() <= second.items()


def trained_vocabulary(folder):
  """Pieces of T5's kind, which transformers reads as SeqIO does."""
  sentences = [sentence for task in tasks.SOURCES
               for sentence, _ in tasks.examples(task, 'validation')]
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences), model_prefix=str(folder / 'made'),
      model_type='unigram', vocab_size=200, pad_id=0, eos_id=1, unk_id=2,
      bos_id=-1, minloglevel=2)
  return folder / 'made.model'


def published_vocabulary(folder):
  """T5's, where it is there."""
  del folder
  file = pathlib.Path(__file__).parents[3].parent / (
      'shared/data/t5_sentencepiece.model')
  if not file.exists():
    pytest.skip(f'{file} is not there')
  return file


@pytest.mark.parametrize('submodules', [1, 2])
@pytest.mark.parametrize('length', [3, 9, 40])
@pytest.mark.parametrize('vocabulary', [
    trained_vocabulary, published_vocabulary])
def test_text_starts_as_theirs(tmp_path, vocabulary, length, submodules):
  text, file = 'the film was good and the review?', vocabulary(tmp_path)
  shutil.copy(file, tmp_path / 'spiece.model')
  (tmp_path / 'config.json').write_text('{"model_type": "t5"}')
  (tmp_path / 'tokenizer_config.json').write_text(
      '{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
  base = model(32128)
  theirs = peft.get_peft_model(base, peft.PromptTuningConfig(
      task_type='SEQ_2_SEQ_LM', num_virtual_tokens=length,
      num_transformer_submodules=submodules, prompt_tuning_init='TEXT',
      prompt_tuning_init_text=text, tokenizer_name_or_path=str(tmp_path)))
  expected = theirs.prompt_encoder['default'].embedding.weight.detach().numpy()
  ours = prompts.from_repeated_string(
      base.shared.weight.detach().numpy(),
      seqio.SentencePieceVocabulary(str(file), extra_ids=100), text)(
          jax.random.key(0), (length, H))
  np.testing.assert_array_equal(ours, expected[:length], strict=True)


def test_sample_vocab_draws_from_all_rows_as_theirs():
  base = model()
  table = base.shared.weight.detach().numpy()
  theirs = peft.get_peft_model(base, peft.PromptTuningConfig(
      task_type='SEQ_2_SEQ_LM', num_virtual_tokens=2000,
      num_transformer_submodules=1, prompt_tuning_init='SAMPLE_VOCAB'))
  drawn = theirs.prompt_encoder['default'].embedding.weight.detach().numpy()
  ours = prompts.from_any_embeddings(table)(jax.random.key(0), (2000, H))
  for prompt in (drawn, np.asarray(ours)):
    rows = (prompt[:, None] == table[None]).all(-1)
    assert (rows.sum(1) == 1).all()
    counts = rows.sum(0)  # 31 of each row, sd 5.5.
    assert counts.min() > 5 and counts.max() < 70
