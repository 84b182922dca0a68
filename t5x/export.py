"""Exports a model for serving: `python -m t5x.export --gin_file=...`.

What is exported is `t5x.export_lib.save`, which is what gin files configure.
"""

import gin
from t5x import datasets  # noqa: F401  Loads TensorFlow without its notices.
from t5x import export_lib
from t5x import program

save = export_lib.save
gin.register('save', module='t5x.export_lib')(save)  # As run files know it.

if __name__ == '__main__':
  program.main(save)
