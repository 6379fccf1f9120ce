"""`python -m busray`: the same as the command `busray`."""

from busray.cli import process

process()
