"""Notebooks run in a batch, and the page that shows what came out."""
