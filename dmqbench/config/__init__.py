"""What was asked for: composed, checked and named, without torch."""
