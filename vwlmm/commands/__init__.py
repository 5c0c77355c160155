"""Commands that are a few lines over the library; larger ones live in their own modules."""
