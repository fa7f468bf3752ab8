"""What networks are held in and compute in, by torch's names. Needs no torch."""

FLOAT32 = "float32"
"""What networks compute in unless another precision is asked for, and everything beside them always."""

DTYPES = (FLOAT32, "bfloat16")

TOO_NARROW = "float16"
"""In which gradients of calibration vanish, and activations of some networks overflow."""

PERTURBATIONS = {FLOAT32: 1e-7, DTYPES[1]: 2.0**-9}
"""Relative change of x_T for the numerical floor: less than one unit in the last place of what the network reads."""
