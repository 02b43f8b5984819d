"""How fast a bundle is: seconds for a call, images per second, and what the machine could do at best."""
