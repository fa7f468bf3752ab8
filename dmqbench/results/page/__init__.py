"""One HTML file that holds a store's tables, plots, images and configurations, and asks no network for anything."""
