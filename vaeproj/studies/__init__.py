"""What the tutorial measures: the article's loop, methods side by side, ablations, settings chosen without labels."""
