"""`inv bench`: the memory and time that the library takes."""
