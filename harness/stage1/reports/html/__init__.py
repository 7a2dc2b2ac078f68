"""Results as one HTML file: a run and its figures, the questions, and the page around them."""
