"""C4 with the noise of BART: the whole text is restored from a damaged one."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import noise
from prompt_tuning.data import text_formats

TFDS = 'c4/en:2.2.0'
TO_TEXT = functools.partial(
    text_formats.rekey, key_map={'inputs': None, 'targets': 'text'})

for _noise in (noise.text_infilling, noise.token_deletion):
  _dataset = families.Dataset(
      name=f'c4_v220_bart_{_noise.__name__}', tfds=TFDS, text=(TO_TEXT,))
  *_cached, _eos = families.to_tokens(_dataset, families.PLAIN)
  families.add_task(_dataset.name, _dataset, [*_cached, _noise, _eos])
