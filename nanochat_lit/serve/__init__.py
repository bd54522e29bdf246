"""What others reach over HTTP: the chat page, the OpenAI-compatible server and its client."""
