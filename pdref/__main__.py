"""`python -m pdref`: the command line."""

from pdref.cli import app

app()
