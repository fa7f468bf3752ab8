"""Networks around diffusers: finding and loading them, what they are made of, and one way to call them."""
