"""Tasks: questions with a way to judge an answer."""
