"""What a bottleneck is worth: answers under every condition, scored; bits; reconstruction error."""
