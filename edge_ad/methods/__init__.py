"""Anomaly detection methods, one per file: each a tile model and how to fit it (PyTorch)."""
