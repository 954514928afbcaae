"""The research brief: read a few documents, look at them in three ways at once, write one page about them."""
