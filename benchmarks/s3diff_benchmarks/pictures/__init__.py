"""How good the pictures of a bundle are: against truths, against PyTorch, and by the scores set by hand."""
