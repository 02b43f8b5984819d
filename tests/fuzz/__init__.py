"""Mutates files that the product reads, and sees that each ends in a result or in an error of ours."""
