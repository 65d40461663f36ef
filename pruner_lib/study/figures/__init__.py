"""One function a figure, and the look that all figures share. Nothing is measured here."""
