"""Results as one HTML file: what is read of a run, the figures, the questions, and the page around them."""
