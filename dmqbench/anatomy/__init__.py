"""Where the error of a quantized network comes from: its layers, rows, channels and steps."""
