"""The panel of notebooks 04 and 05."""
