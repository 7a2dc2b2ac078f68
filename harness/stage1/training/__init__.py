"""From prompts to a trained bottleneck: batches, objective, selection, the loop, its phases."""
