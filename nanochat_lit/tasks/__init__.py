"""Tasks: conversations with verifiable answers."""
