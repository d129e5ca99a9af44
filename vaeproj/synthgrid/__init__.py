"""SynthGrid: rendered data sets in MVTec AD's layout."""
