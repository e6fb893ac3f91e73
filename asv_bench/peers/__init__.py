"""subquad against other ways to compute sparse attention on a CPU, in one run: `python -m peers --help`."""
