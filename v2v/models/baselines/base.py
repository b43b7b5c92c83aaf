"""What the baselines have in common: presets, and the arguments in the record of a model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from v2v.config import Config
from v2v.errors import UnknownName
from v2v.models.protocol import Generator


class BaselineArguments(Config):
    """The arguments of a baseline in the record of a model."""

    name: Literal["pix2pix", "pix2pixhd", "spade"]
    channels: Annotated[int, Field(ge=1, le=1024)]
    preset: Literal["mobile", "base", "large", "paper"]
    scales: Annotated[int, Field(ge=1, le=6)] | None = None


class Baseline(Generator):
    """A frame-by-frame generator of a single scale, in the sizes of its `presets`."""

    presets: ClassVar[dict[str, dict[str, Any]]]  # arguments besides `channels`

    @classmethod
    def build(
        cls, *, channels: int, preset: str, scales: int | None = None, **arguments: Any
    ) -> Self:
        """Build it for `channels` of the signals.

        Args:
            preset: mobile, base, large, or paper for the published size.
            scales: ignored.

        Raises `UnknownName` for another preset.
        """
        if preset not in cls.presets:
            raise UnknownName.among("preset", preset, cls.presets)
        return cls(channels=channels, **cls.presets[preset], **arguments)

    @classmethod
    def check(cls, arguments: dict[str, Any]) -> None:
        BaselineArguments.model_validate(arguments, strict=True)
