"""The one training loop, its network and its latents."""
