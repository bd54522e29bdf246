"""Pages on runs, sweeps and the quickstart: Jinja templates of markdown, which also become one HTML file."""
