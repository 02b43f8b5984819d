"""What a bundle is: manifest, records, integrity, opening, the sessions of its bins."""
