"""SeqIO tasks, preprocessors, postprocessors and metrics; no jax."""
