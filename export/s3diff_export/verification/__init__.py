"""Holds bundles against PyTorch: on which cases, its results, and the errors of stages and layers."""
