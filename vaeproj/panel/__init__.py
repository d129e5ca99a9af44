"""The panel of notebook 04."""
