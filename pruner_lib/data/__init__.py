"""Data by name: downloads, texts and instructions, and the windows of tokens cut from them."""
