"""A page in which one sees what the reduction of tokens did: ``tools/report.py``."""
