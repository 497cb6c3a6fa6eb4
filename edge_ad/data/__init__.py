"""Dataset layouts, the decoded-image cache, the synthetic generator."""
