"""Links from a page to a file outside the pages: the site shows LOG.md as a page and leaves notebooks and README out."""

import re


def on_page_markdown(markdown, **_):
    """Rewrites links that only work in the repository."""
    markdown = markdown.replace("(../LOG.md", "(log.md")
    return re.sub(r"\[([^\]]+)\]\(\.\./\.\./[^)]*\)", r"\1", markdown)
