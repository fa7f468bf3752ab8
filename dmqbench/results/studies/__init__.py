"""What many jobs say together, as data; drawn by the page and by the plots."""
