"""Evaluation: generate through `LLM`, run what was generated in a sandbox, count."""
