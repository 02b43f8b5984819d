"""Training: run folders, the loop, validation, and the three things that are trained with them."""
