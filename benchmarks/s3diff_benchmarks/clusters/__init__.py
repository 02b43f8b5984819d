"""Plans past this machine: what many machines take for many pictures."""
