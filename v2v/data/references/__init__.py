"""Appearance references: a few real frames of a person, warped to the target pose.

A reference is cut into the parts of its signal (`v2v.signals.parts`). The limbs, torso, head and
hands of a body are each warped by an affine transform. A face is warped as a whole by the dense
motion of its control points (arXiv 2003.00196, equation 4, with known weights); its mouth and eyes
come from other frames if those fit better. Each part comes from the reference that shows it in the
most similar pose. The best references of all parts form candidate 0, the second best candidate 1,
and so on: what is hidden in one candidate may be visible in another.

Shapes: R references, P parts, K candidates, H, W pixels of the model's frames.
"""
