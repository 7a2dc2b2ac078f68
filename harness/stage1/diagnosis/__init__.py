"""Why is F1 what it is? Measurements on one bottleneck, and findings ordered by how much F1 they explain."""
