"""Baton beside plain Oban, and the numbers the README shows. Run it with `make bench`."""
