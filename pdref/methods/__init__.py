"""One idea per file, objective and sampler side by side."""
