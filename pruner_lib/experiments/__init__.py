"""Experiments as plain data, their settings by profile, their stages, records and files."""
