"""Quantization methods: one file each, made of stages."""
