"""From a Hugging Face model to a module of level `llm`."""
