"""The families of checkpoints: a file for each, `table` names them."""
