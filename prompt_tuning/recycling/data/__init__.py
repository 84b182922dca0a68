"""SeqIO tasks, preprocessors and metrics of prompt recycling."""
