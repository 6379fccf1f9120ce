"""`python -m busray`: the same as the command `busray`."""

from busray.cli import process

if __name__ == "__main__":
    process()
