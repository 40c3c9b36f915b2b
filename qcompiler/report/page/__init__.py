"""report.html: one file that shows a `ModelReport`, with nothing fetched from elsewhere."""
