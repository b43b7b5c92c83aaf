"""Small sample clips drawn from code, so they are free of rights and their truth is known.

    v2v.samples.person  a dancing person before a still room; the joints that were drawn
    v2v.samples.face    a talking face; mouth, eyes and head turn that were drawn
    v2v.samples.street  a drive down a street; labels, instances, exact flow and occlusion

Person and face are painted as shaded shapes over a small skeleton (OpenCV polygons on a
supersampled canvas); the street is ray cast from planes with a pinhole camera. Every clip is
a generator of frames, the same bytes for the same arguments on the same machine, and frame
`i` does not depend on how many frames are asked for. Import the submodule that is wanted;
this package itself imports nothing.
"""
