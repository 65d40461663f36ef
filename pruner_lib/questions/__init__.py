"""The questions of the paper: what each notebook compares, and the statistics that it needs."""
