"""Evaluation: how close rendered video is to real video, and how temporally stable it is."""
