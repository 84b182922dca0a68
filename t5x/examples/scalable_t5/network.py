"""T5 whose layers are stacked and scanned over, under T5X's module path.

The network is `t5x.examples.t5.network` with other defaults. It compiles once
per stack instead of once per layer, and keeps little for the backward pass.
"""

import dataclasses

from t5x.examples.t5 import network


@dataclasses.dataclass(frozen=True)
class T5Config(network.T5Config):
  """See `t5x.examples.t5.config.T5Config`."""

  scan_layers: bool = True
  remat_policy: str = 'minimal'


class Transformer(network.Transformer):
  """See `t5x.examples.t5.network.Transformer`."""

  config: T5Config
