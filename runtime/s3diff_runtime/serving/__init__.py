"""Services: thin, over `Upscaler`."""
