"""Opens an exported bundle and upscales images with it, without torch."""
