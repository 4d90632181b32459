"""Models whose answers are known, a source whose joint is known, and the laws that samplers and losses must keep."""
