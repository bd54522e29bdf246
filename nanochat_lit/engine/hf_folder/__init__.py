"""The two files of code that go into every folder for Hugging Face; they need transformers and nothing of this package."""
