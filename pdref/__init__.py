"""pdref: the reference implementation of plan-then-generate language models and of Planned Diffusion.

The floors, from the ground up: `text` and `theory` import nothing of ours; `ops` stands on `text`, `data` on `text`
and `theory`, `model` on `ops`, `methods` on these, `lab` on all of them, and the command line on `lab`.
"""

__version__ = "0.1.0"
