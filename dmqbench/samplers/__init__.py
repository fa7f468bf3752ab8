"""Samplers as coefficient tables with a pure step.

They import torch only; ``timesteps`` and ``spec`` not even that.
"""
