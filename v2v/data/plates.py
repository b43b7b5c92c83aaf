"""Background plates of the clips, placed like their frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from v2v.data.background import BackgroundPlate, Backgrounds
from v2v.data.sampling import WindowSample
from v2v.data.transforms import Pictures, Placement, shrink


class PlacedPlates:
    """The background plates of the clips, placed; one cache per process."""

    def __init__(
        self,
        plates: Sequence[BackgroundPlate | None],
        placement: Callable[[int, tuple[int, int]], Placement],
    ) -> None:
        """`placement` gives the placement of a clip's frames in rendering at (height, width)."""
        self.plates, self.placement = plates, placement
        self._backgrounds: dict[tuple[int, tuple[int, int]], Backgrounds] = {}
        self._shrunk: dict[tuple[int, int], tuple[Pictures, Pictures]] = {}

    @property
    def camera_moves(self) -> bool:
        return any(plate is not None and plate.backgrounds is not None for plate in self.plates)

    def backgrounds(self, clip: int, size: tuple[int, int]) -> Backgrounds | None:
        """The backgrounds of a clip with a moving camera, placed by `placement`; else None."""
        plate = self.plates[clip]
        if plate is None or plate.backgrounds is None:
            return None
        key = (clip, size)
        if key not in self._backgrounds:
            self._backgrounds[key] = plate.backgrounds.placed(self.placement(clip, size))
        return self._backgrounds[key]

    def background(self, clip: int, size: tuple[int, int]) -> Pictures:
        """[H, W, 4] RGB and valid mask (255) of a clip's background, seen by a still camera."""
        plate, found = self.plates[clip], self.backgrounds(clip, size)
        assert plate is not None
        if found is not None:
            return found.of()
        return self.still(clip, self.placement(clip, size))

    def still(self, clip: int, placement: Placement) -> Pictures:
        """[H, W, 4] RGB, and 255 where valid: the plate of a clip whose camera stands still."""
        key = (clip, placement.downscale)
        if key not in self._shrunk:  # of footage at 1080 px a third of the loading time
            plate = self.plates[clip]
            assert plate is not None
            valid_mask = np.where(plate.valid_mask > 0, 255, 0).astype(np.uint8)
            picture, valid_mask = (
                shrink(whole[None], placement.downscale)[0] for whole in (plate.picture, valid_mask)
            )
            self._shrunk[key] = picture, valid_mask
        picture, valid_mask = (placement.picture(part) for part in self._shrunk[key])
        return np.concatenate([picture, valid_mask[..., None]], axis=-1)

    def behind(self, draw: WindowSample, length: int) -> list[Pictures]:
        """[H, W, 4] RGB and valid mask (255) of the background of each frame of a window.

        A single picture if the camera stands still.
        """
        plate, size = self.plates[draw.clip], draw.placement.size
        assert plate is not None
        found = self.backgrounds(draw.clip, size)
        if found is None:
            return [self.still(draw.clip, draw.placement)]
        change = draw.placement.matrix @ np.linalg.inv(self.placement(draw.clip, size).matrix)
        return [
            found.of(draw.start + t * draw.stride, change=change, size=size) for t in range(length)
        ]
