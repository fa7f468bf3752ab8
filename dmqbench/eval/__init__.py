"""What a quantized model cost in image quality: metrics, their protocols and their intervals."""
