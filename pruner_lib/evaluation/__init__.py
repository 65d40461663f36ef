"""Evaluate a model: perplexity, zero-shot accuracy, generated text, size, speed, memory."""
