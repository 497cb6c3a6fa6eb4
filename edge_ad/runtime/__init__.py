"""Lean inference: numpy, OpenCV for pixels, and one engine. Never torch."""
