"""The quantization core: specifications, observers, quantizers, quantized layers. Imports torch only."""
