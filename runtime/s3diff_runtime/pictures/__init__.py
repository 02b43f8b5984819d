"""Photographs in and out: formats, profiles, metadata, tiles, comparison."""
