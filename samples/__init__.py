"""Synthetic sample clips with ground truth, drawn by code and so free of copyright.

    v2v.samples.person  a person dancing in a static room, with joints
    v2v.samples.face    a talking face, with openness of mouth and eyes and head rotation
    v2v.samples.street  a drive along a street, with labels, instances, exact flow and occlusion

Person and face are shaded shapes over a small skeleton (OpenCV polygons on a supersampled
canvas); the street is ray cast from planes with a pinhole camera. Every clip is a generator of
frames. It yields the same bytes for the same arguments on the same machine, and frame `i` does
not depend on the number of frames. Import the submodules; this package itself imports nothing.
"""
