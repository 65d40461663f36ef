"""Models by name: where they come from, how they are loaded, pruned, saved and spread over devices."""
