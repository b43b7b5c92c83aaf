"""Pipelines: render new video from a trained model and a driving video. One file per pipeline."""
