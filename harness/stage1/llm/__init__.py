"""The frozen LLM: where it lies, its tokenizer and embedding table, its states."""
