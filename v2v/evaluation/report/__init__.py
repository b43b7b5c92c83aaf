"""The report of an evaluation: one HTML file with pictures, a video and curves."""
