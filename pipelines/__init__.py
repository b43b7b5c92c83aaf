"""Pipelines: from a trained model and a driving video to new video. One file each."""
