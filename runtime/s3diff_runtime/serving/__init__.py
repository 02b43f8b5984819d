"""Upscaling as a service: thin over `Upscaler`."""
