"""What runs say when they are set side by side: numbers in, tables out."""
