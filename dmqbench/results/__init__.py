"""What finished results say: tables, differences, figures. Imports no torch."""
