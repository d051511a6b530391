"""What a machine or cluster must have before a run is started on it: checks, each with its remedy."""
