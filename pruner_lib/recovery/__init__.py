"""Recovery after pruning: LoRA fine-tuning on instructions, resumable."""
