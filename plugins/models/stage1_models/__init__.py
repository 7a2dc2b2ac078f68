"""Built-in models, one module each."""
