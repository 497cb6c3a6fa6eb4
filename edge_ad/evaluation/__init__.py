"""Metrics, thresholds, curves and result tables."""
