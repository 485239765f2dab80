"""Comparison of finished runs: tables and paired tests, from the files of runs."""
