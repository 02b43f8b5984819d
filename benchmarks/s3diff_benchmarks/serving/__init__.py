"""What the HTTP service bears: load, faults and attacks."""
