"""What is measured of a model: perplexity, zero-shot accuracy, texts, size, speed, memory."""
