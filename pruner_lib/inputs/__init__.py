"""What the method works on: downloads, texts, models and the checkpoints that they are saved as."""
