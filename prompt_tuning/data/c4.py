"""C4 with the noise of BART: the whole text is restored from a damaged one."""

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import noise

*_cached, _eos = families.to_tokens(benchmarks.C4, families.PLAIN)
for _noise in (noise.text_infilling, noise.token_deletion):
  families.add_task(f'{benchmarks.C4.name}_bart_{_noise.__name__}',
                    benchmarks.C4, [*_cached, _noise, _eos])
