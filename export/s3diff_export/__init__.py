"""Turns a checkpoint into graphs, engines and a bundle; holds the root of the command line."""
