"""Models by name: where they are found, how they are loaded, saved and spread over devices."""
