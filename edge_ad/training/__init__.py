"""The ensemble trainer and the run folder it fills."""
