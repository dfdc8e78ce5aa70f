"""Pictures of images, depth and losses, and charts of figures."""
