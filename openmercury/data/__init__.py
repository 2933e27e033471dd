"""What training rows are made of: sources, prompts, decontamination; then packing, shards and the loader."""
