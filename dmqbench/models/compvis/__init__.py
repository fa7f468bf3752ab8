"""Original checkpoints of latent diffusion (CompVis) as diffusers folders: ``python -m dmqbench.models.compvis``."""
