"""DepthFM: depth by flow matching between image and depth latents."""
