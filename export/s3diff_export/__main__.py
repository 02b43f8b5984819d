"""Runs the command line as `python -m s3diff_export`."""

from s3diff_export.cli import main

main()
