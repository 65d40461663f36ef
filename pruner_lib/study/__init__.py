"""The study: settings, runs, records, what the notebooks compare, the paper's claims, figures, report."""
