"""Reports on runs, sweeps and the quickstart, from Jinja templates, as Markdown and as one HTML file."""
