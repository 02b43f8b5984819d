"""What a benchmark found: as JSON, Markdown, plots and a page, and compared with another time."""
