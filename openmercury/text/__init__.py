"""What a prompt is: tokenizer, chat template, fill-in-the-middle, streaming text; for requests and training alike."""
