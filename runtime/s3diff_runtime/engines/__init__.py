"""What runs the stages of a bundle: engines and which of them serves, devices, sizes, back-off."""
