"""SeqIO tasks, preprocessors, postprocessors and metrics; no jax."""

from t5x import datasets  # noqa: F401  Loads TensorFlow without its notices.
