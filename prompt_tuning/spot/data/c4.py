"""C4 for SPoT: the end of a text from its beginning."""

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import noise

*_cached, _eos = families.to_tokens(benchmarks.C4, families.PLAIN)
families.add_task(f'spot_{benchmarks.C4.name}_prefix_lm', benchmarks.C4,
                  [*_cached, noise.prefix_lm, _eos])
