"""Training, evaluation and their records: know a `Model` and a batch, and nothing about diffusion."""
