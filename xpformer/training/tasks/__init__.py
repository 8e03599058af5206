"""The tasks: images into classes, and text that goes on."""
