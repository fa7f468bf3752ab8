"""PNG files: matplotlib and Pillow."""
