"""Questions and answers: data sets, records in files, prompts whose segments are known."""
