"""Experiments: a grid of data sets, methods, setups and precisions, trained, measured and set in the papers' tables."""
