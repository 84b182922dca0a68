"""SeqIO tasks and preprocessors of SPoT."""
