"""Load, prune, save and export models, and distribute them over devices."""
