"""Everything that touches lm-eval: the model it drives, its tasks, and how they are found."""
