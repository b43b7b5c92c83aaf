"""Evaluation: how close rendered video is to real video, and how temporally stable it is.

`evaluate` renders held-out frames, measures them and writes the report; `compare` and `study` put
methods side by side for viewers.
"""
