"""Download data by name, read texts and instructions, and cut them into windows of tokens."""
