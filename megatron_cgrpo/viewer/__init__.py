"""A run's rollouts and timelines as a local web page, read step by step from what the run has written so far."""
