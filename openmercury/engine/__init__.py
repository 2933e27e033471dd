"""Decoding with a KV cache: token ids in, token ids out. The engine never sees text."""
