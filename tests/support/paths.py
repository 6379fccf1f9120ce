"""Where the project's own files and the shared ones lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The project's folder."""
SHARED = ROOT.parent / "shared"
"""Real images and fixtures beside the project; tests that need them skip where it is missing."""
