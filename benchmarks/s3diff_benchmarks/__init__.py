"""Measures latency, throughput, memory and image quality, beside the figures of the paper."""
