"""The chat page, the OpenAI-compatible server and its client."""
