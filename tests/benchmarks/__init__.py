"""`inv bench`: memory and time of what the library does."""
