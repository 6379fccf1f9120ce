"""From a folder of labelled breast-ultrasound images to a synthetic corpus with its evidence."""

__version__ = "0.1.0"
