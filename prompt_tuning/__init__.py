"""Prompt tuning and SPoT: soft prompts for frozen models, and their transfer.

Brian Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning",
EMNLP 2021. Tu Vu et al., "SPoT: Better Frozen Model Adaptation through Soft
Prompt Transfer", ACL 2022.
"""

import t5x

if not hasattr(t5x, 'DISTRIBUTION'):
  raise ImportError(
      f'The package t5x at {t5x.__file__} is the upstream one, not the engine '
      'of this project: pip uninstall t5x, then install this project again.')
