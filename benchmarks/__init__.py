"""The EfficientAD timing protocol and its reports."""
