"""Training that compares the labels of an example."""
