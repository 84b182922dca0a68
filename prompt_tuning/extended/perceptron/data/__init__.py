"""Tasks of which an example holds every label."""
