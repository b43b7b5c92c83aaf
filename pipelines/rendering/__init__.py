"""The rendering core of all pipelines: from signals to frames, from frames to a video file."""
