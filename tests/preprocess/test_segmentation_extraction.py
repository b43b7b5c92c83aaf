"""Tests imported label maps in all formats; networks run on random weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from v2v import weights
from v2v.config import PreprocessSettings, load_config
from v2v.data.store import ClipStore
from v2v.errors import LabelsMismatch, NothingFound, UsageError, WeightsUnavailable
from v2v.preprocess import segmentation as extraction
from v2v.preprocess.detectors import Body
from v2v.preprocess.extractor import ClipContext
from v2v.preprocess.segmentation import LICENSE_PLATE, Extractor, pair_names
from v2v.signals.segmentation import CITYSCAPES, VOC, VOID, LabelTrack
from v2v.video.plan import Geometry
from v2v.weights import torchvision_models

WIDTH, HEIGHT, COUNT = 64, 48, 6
NAMES = list(CITYSCAPES)
ROAD, SKY, PERSON, CAR = (NAMES.index(n) for n in ("road", "sky", "person", "car"))
COLOURS = np.array(list(CITYSCAPES.values()), np.uint8)
Maps = NDArray[np.uint8]


def truth(count: int = COUNT) -> Maps:
    """Label maps of a street: sky over road, a car moving to the right, a person."""
    maps = np.full((count, HEIGHT, WIDTH), SKY, np.uint8)
    maps[:, HEIGHT // 2 :] = ROAD
    maps[:, 10:40, 48:56] = PERSON
    for t in range(count):
        maps[t, 20:32, 4 + 4 * t : 20 + 4 * t] = CAR
    return maps


def instances_of(maps: Maps) -> NDArray[np.uint16]:
    """Cityscapes instance ids: class * 1000 + number for objects, else the class."""
    numbers = maps.astype(np.uint16)
    for thing, number in ((CAR, 3), (PERSON, 0)):
        numbers[maps == thing] = thing * 1000 + number
    return numbers


def save(folder: Path, maps: Maps, kind: str, *, name: str = "{:d}.png") -> Path:
    folder.mkdir()
    for t, one in enumerate(maps):
        if kind == "palette":
            image = Image.fromarray(one, "L").convert("P")
            image.putdata(one.ravel().tolist())
            image.putpalette(COLOURS.ravel().tolist() + [0] * (768 - COLOURS.size))
        elif kind == "colour":
            image = Image.fromarray(COLOURS[one])
        elif kind == "colour-alpha":
            image = Image.fromarray(COLOURS[one]).convert("RGBA")
        elif kind == "instance":
            image = Image.fromarray(instances_of(one))
        elif kind == "three channels":
            image = Image.fromarray(np.dstack([one] * 3))
        elif kind == "opacity":
            opacity = np.where(one == SKY, 0, 255).astype(np.uint8)
            image = Image.fromarray(np.dstack([one, opacity]))
        elif kind == "float":
            image = Image.fromarray(one.astype(np.float32))
        elif kind == "deep channels":
            image = Image.fromarray(one)  # overwritten below
        else:
            image = Image.fromarray(one)
        image.save(folder / name.format(t))
        if kind == "deep channels":
            cv2.imwrite(str(folder / name.format(t)), np.dstack([instances_of(one)] * 3))
    return folder


def settings(labels: Path | None = None, *overrides: str, **values: object) -> PreprocessSettings:
    chosen = {"segmentation.backend": "labels", "segmentation.labels": labels}
    chosen |= {f"segmentation.{name}": value for name, value in values.items()}
    return load_config(PreprocessSettings, "preprocess", overrides=list(overrides), values=chosen)


def context(
    count: int = COUNT,
    *,
    box: tuple[int, int, int, int] = (0, 0, WIDTH, HEIGHT),
    size: tuple[int, int] = (WIDTH, HEIGHT),
    upright: tuple[int, int] = (WIDTH, HEIGHT),
    sources: NDArray[np.int64] | None = None,
    source_frames: int | None = None,
) -> ClipContext:
    return ClipContext(
        name="street.mp4", width=size[0], height=size[1], rate=Fraction(10), count=count,
        geometry=Geometry(box, *size), upright=upright, source_frames=source_frames or count,
        sources=np.arange(count) if sources is None else sources,
    )  # fmt: skip


def read(chosen: PreprocessSettings, clip: ClipContext) -> dict[str, NDArray[np.uint8]]:
    """The extractor's records, stacked over the frames."""
    extractor = Extractor(chosen, clip)
    extractor.begin(None)
    frame = np.zeros((clip.height, clip.width, 3), np.uint8)
    records = [extractor.step(t, frame, None, False) for t in range(clip.count)]
    extractor.end()
    return {name: np.stack([np.asarray(r[name]) for r in records]) for name in records[0]}


# ---------------------------------------------------------------- formats


FORMATS = ["grey", "palette", "colour", "colour-alpha", "instance", "three channels", "opacity",
         "float", "deep channels"]  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_give_the_same_labels(tmp_path: Path, kind: str) -> None:
    suffix = "{:d}.tif" if kind == "float" else "{:d}.png"
    found = read(settings(save(tmp_path / kind, truth(), kind, name=suffix)), context())
    np.testing.assert_array_equal(found["segmentation.mkv"], truth())
    assert found["segmentation.mkv"].dtype == np.uint8
    assert ("instances.mkv" in found) == (kind in ("instance", "deep channels"))
    if "instances.mkv" in found:
        assert found["instances.mkv"].dtype == np.uint16
        np.testing.assert_array_equal(found["instances.mkv"], instances_of(truth()))
    np.testing.assert_array_equal(found["pixels"].sum(axis=1), HEIGHT * WIDTH)


def test_instance_map_without_objects_still_records_instances(tmp_path: Path) -> None:
    """All frames of a clip must record the same arrays."""
    maps = truth()
    maps[1] = ROAD
    found = read(settings(save(tmp_path / "maps", maps, "instance")), context())
    assert (found["instances.mkv"][1] == ROAD).all()
    np.testing.assert_array_equal(found["segmentation.mkv"], maps)


def test_maps_are_read_in_frame_order(tmp_path: Path) -> None:
    maps = np.arange(12, dtype=np.uint8)[:, None, None].repeat(HEIGHT, 1).repeat(WIDTH, 2)
    folder = save(tmp_path / "maps", maps, "grey")  # 0.png ... 11.png: 10 follows 9
    found = read(settings(folder), context(12))
    assert found["segmentation.mkv"][:, 0, 0].tolist() == list(range(12))
    kept = read(settings(folder), context(4, sources=np.array([2, 2, 5, 11]), source_frames=12))
    assert kept["segmentation.mkv"][:, 0, 0].tolist() == [2, 2, 5, 11]


def test_license_plates_and_void(tmp_path: Path) -> None:
    """Cityscapes stores id -1 as 255, unless the user declares 255 as void."""
    maps = truth()
    maps[:, :4, :4] = 255
    folder = save(tmp_path / "maps", maps, "grey")
    corner = np.s_[:, :4, :4]
    plain = read(settings(folder), context())["segmentation.mkv"]
    assert (plain[corner] == LICENSE_PLATE).all()
    assert NAMES[LICENSE_PLATE] == "license plate"
    void = read(settings(folder, void=[255, SKY]), context())["segmentation.mkv"]
    assert (void[corner] == VOID).all() and not (void == SKY).any()
    np.testing.assert_array_equal(void[maps == ROAD], ROAD)
    listed = read(settings(folder, classes=NAMES), context())["segmentation.mkv"]
    assert (listed[corner] == VOID).all(), "the rule does not apply to user-defined classes"


@pytest.mark.parametrize("classes", ["voc", ["sky", "road", "car"]])
def test_user_defined_classes(tmp_path: Path, classes: object) -> None:
    maps = truth() % 3
    extractor = Extractor(
        settings(save(tmp_path / "maps", maps, "grey"), classes=classes), context()
    )
    assert extractor.segmenter.classes == (VOC if classes == "voc" else tuple(classes))  # type: ignore[arg-type]
    assert len(extractor.segmenter.palette) == len(extractor.segmenter.classes)


# ---------------------------------------------------------------- numberings

TRAIN_IDS = {7: 0, 23: 10, 24: 11, 26: 13}  # road, sky, person, car


def as_train_ids(maps: Maps) -> Maps:
    numbers = np.zeros_like(maps)
    for label, number in TRAIN_IDS.items():
        numbers[maps == label] = number
    numbers[:, -2:] = 255
    return numbers


def test_cityscapes_train_ids_are_recognised_and_reported(tmp_path: Path) -> None:
    wanted = truth()
    wanted[:, -2:] = VOID
    folder = save(tmp_path / "maps", as_train_ids(truth()), "grey")
    for numbering in ("auto", "trainids"):
        chosen = settings(folder, numbering=numbering)
        np.testing.assert_array_equal(read(chosen, context())["segmentation.mkv"], wanted)
        extractor = Extractor(chosen, context())
        assert extractor.segmenter.classes == tuple(NAMES)
        warnings = " ".join(extractor.segmenter.warnings)  # type: ignore[attr-defined]
        assert ("train ids, 255 as void" in warnings) == (numbering == "auto")
    as_ids = read(settings(folder, numbering="ids"), context())["segmentation.mkv"]
    assert (as_ids[:, -1] == LICENSE_PLATE).all()
    void = read(settings(folder, void=[255]), context())["segmentation.mkv"]
    assert set(np.unique(void)) == {0, 10, 11, 13, VOID}, (
        "an explicit setting disables the inference"
    )


@pytest.mark.parametrize("kind", ["grey", "three channels"])
@pytest.mark.parametrize("classes", ["cityscapes", ["nothing", "dancer"]])
def test_masks_are_recognised_and_reported(tmp_path: Path, kind: str, classes: object) -> None:
    mask = (truth() == PERSON).astype(np.uint8)
    chosen = settings(save(tmp_path / "maps", mask * 255, kind), classes=classes)
    np.testing.assert_array_equal(read(chosen, context())["segmentation.mkv"], mask)
    extractor = Extractor(chosen, context())
    named = ("background", "person") if classes == "cityscapes" else ("nothing", "dancer")
    assert extractor.segmenter.classes == named
    assert f"255 as {named[1]}" in extractor.segmenter.warnings[0]  # type: ignore[attr-defined]


def test_mask_needs_two_values_and_two_classes(tmp_path: Path) -> None:
    soft = np.full((COUNT, HEIGHT, WIDTH), 128, np.uint8)
    folder = save(tmp_path / "maps", soft, "grey")
    with pytest.raises(LabelsMismatch, match=r"the value 128, which is not a mask value"):
        read(settings(folder, numbering="mask"), context())
    with pytest.raises(LabelsMismatch, match=r"the value 128, which is not a train id"):
        read(settings(folder, numbering="trainids"), context())
    with pytest.raises(UsageError, match="two classes, but 3 are given"):
        Extractor(settings(folder, numbering="mask", classes=["a", "b", "c"]), context())
    with pytest.raises(UsageError, match="needs Cityscapes' classes"):
        Extractor(settings(folder, numbering="trainids", classes="voc"), context())


def test_low_ids_stay_ids_with_a_warning_about_train_ids(tmp_path: Path) -> None:
    maps = as_train_ids(truth())
    maps[maps == 255] = 0
    chosen = settings(save(tmp_path / "maps", maps, "grey"))
    np.testing.assert_array_equal(read(chosen, context())["segmentation.mkv"], maps)
    extractor = Extractor(chosen, context())
    assert "numbering=trainids" in extractor.segmenter.warnings[0]  # type: ignore[attr-defined]


def test_numbering_is_recorded_only_if_set(tmp_path: Path) -> None:
    """So the settings match stores made before the key existed, and nothing is extracted again."""
    plain = settings(tmp_path).segmentation.model_dump(mode="json")
    assert "numbering" not in plain
    explicit = settings(tmp_path, numbering="mask").segmentation.model_dump(mode="json")
    assert explicit == plain | {"numbering": "mask"}


def test_uniform_grey_colour_map_is_read_as_colours(tmp_path: Path) -> None:
    building = NAMES.index("building")
    maps = truth()
    maps[2] = building  # (70, 70, 70) throughout
    found = read(settings(save(tmp_path / "maps", maps, "colour")), context())
    np.testing.assert_array_equal(found["segmentation.mkv"], maps)


# ---------------------------------------------------------------- pairing maps with images


def test_maps_and_images_are_paired_by_number() -> None:
    labels = [Path(f"{n}_gtFine.png") for n in (10, 2, 3)]
    images = [f"a_{n:04}_leftImg8bit.png" for n in (2, 3, 10)]
    paired, warning = pair_names(images, labels)
    assert [p.name for p in paired] == ["2_gtFine.png", "3_gtFine.png", "10_gtFine.png"]
    assert warning is None


def test_shifted_names_are_paired_by_order_with_a_warning(tmp_path: Path) -> None:
    folder = save(tmp_path / "maps", truth(), "grey", name="frame_{:04d}.png")
    names = tuple(f"frame_{n:04}.png" for n in range(1, COUNT + 1))
    clip = replace(context(), names=names)
    np.testing.assert_array_equal(read(settings(folder), clip)["segmentation.mkv"], truth())
    extractor = Extractor(settings(folder), clip)
    warning = extractor.segmenter.warnings[0]  # type: ignore[attr-defined]
    assert "paired by order, frame_0001.png with frame_0000.png" in warning


@pytest.mark.parametrize("names", [(), ("a.png", "b.png"), ("1_2.png", "2_3.png")])
def test_incomparable_names_are_paired_by_order(names: tuple[str, ...]) -> None:
    labels = [Path("5.png"), Path("6.png")]
    assert pair_names(names, labels) == (labels, None)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(("name", "options"), [("{:d}.jpg", {}), ("{:d}.webp", {"quality": 80})])
def test_lossy_maps_are_rejected(tmp_path: Path, name: str, options: dict[str, int]) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    for t, one in enumerate(truth()):
        Image.fromarray(one).convert("RGB").save(folder / name.format(t), **options)  # type: ignore[arg-type]
    message = r"0\.\w+ is compressed with loss, .* \d+ different values were found"
    with pytest.raises(LabelsMismatch, match=message) as caught:
        Extractor(settings(folder), context())
    assert "PNG" in str(caught.value.hint)


def test_lossless_webp_is_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    for t, one in enumerate(truth()):
        Image.fromarray(np.dstack([one] * 3)).save(folder / f"{t}.webp", lossless=True)
    np.testing.assert_array_equal(read(settings(folder), context())["segmentation.mkv"], truth())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((HEIGHT, WIDTH), 300, np.uint16), "label id 300, but there are 35 classes"),
        (np.full((HEIGHT, WIDTH), -1, np.int32), "label id -1, but there are 35 classes|value -1"),
        (np.full((HEIGHT, WIDTH), 70000, np.int32), "value 70000; label and instance ids must be"),
        (np.full((HEIGHT, WIDTH), 7.5, np.float32), "fractional values; label ids"),
    ],
)
def test_invalid_ids_are_rejected(tmp_path: Path, values: NDArray[Any], message: str) -> None:
    folder = save(tmp_path / "maps", truth(), "grey", name="{:d}.tif")
    Image.fromarray(values).save(folder / "1.tif")
    with pytest.raises(LabelsMismatch, match=message):
        read(settings(folder), context())


def bad_size(folder: Path) -> None:
    Image.fromarray(np.zeros((HEIGHT, HEIGHT), np.uint8)).save(folder / "1.png")


def bad_id(folder: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 77, np.uint8)).save(folder / "1.png")


def bad_instance(folder: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 40007, np.uint16)).save(folder / "1.png")


def bad_colour(folder: Path) -> None:
    picture = COLOURS[truth()[1]].copy()
    picture[5, 7] = (1, 2, 3)
    Image.fromarray(picture).save(folder / "1.png")


def bad_file(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no picture")


def truncated_file(folder: Path) -> None:
    complete = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(complete[: len(complete) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (bad_size, r"1\.png is 48x48, but the footage is 64x48"),
        (bad_id, r"1\.png has the label id 77, but there are 35 classes"),
        (bad_instance, r"1\.png has the label id 40, but there are 35 classes"),
        (
            bad_colour,
            r"1\.png is a colour image, and its colour \(1, 2, 3\) at 7, 5 is not a class",
        ),
        (bad_file, r"1\.png cannot be read as an image"),
        (truncated_file, r"1\.png cannot be read as an image"),
    ],
)
def test_error_names_the_bad_map_and_the_fault(
    tmp_path: Path, damage: object, message: str
) -> None:
    folder = save(tmp_path / "maps", truth(), "grey")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(LabelsMismatch, match=message):
        read(settings(folder), context())


@pytest.mark.parametrize("frames", [2, 4, 7])
def test_wrong_number_of_maps_is_rejected(tmp_path: Path, frames: int) -> None:
    folder = save(tmp_path / "maps", truth(), "grey")
    message = rf"maps contains {COUNT} label maps, but street\.mp4 has {frames} frames"
    with pytest.raises(LabelsMismatch, match=message):
        Extractor(settings(folder), context(frames))


def test_partial_store_without_its_footage_rejects_maps(tmp_path: Path) -> None:
    folder = save(tmp_path / "maps", truth(), "grey")
    clip = replace(context(2, source_frames=COUNT), sources=None)
    with pytest.raises(LabelsMismatch, match="does not record which frames"):
        Extractor(settings(folder), clip)


def test_missing_maps_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs label maps"):
        Extractor(settings(None), context())
    with pytest.raises(LabelsMismatch, match="no such folder of label maps"):
        Extractor(settings(tmp_path / "gone"), context())


def test_changed_maps_change_the_inputs(tmp_path: Path) -> None:
    folder = save(tmp_path / "maps", truth(), "grey")
    before = Extractor(settings(folder), context()).inputs()
    assert Extractor(settings(folder), context()).inputs() == before
    shutil.copy(folder / "0.png", folder / "2.png")
    assert Extractor(settings(folder), context()).inputs() != before


# ---------------------------------------------------------------- alignment


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 64, 48), (64, 48)),
        ((0, 0, 64, 48), (128, 96)),
        ((0, 0, 64, 48), (20, 16)),
        ((16, 8, 32, 32), (32, 32)),
        ((16, 8, 32, 32), (50, 20)),
        ((8, 4, 48, 40), (100, 30)),
    ],
)
def test_maps_are_cropped_and_resized_like_the_frames(
    tmp_path: Path, box: tuple[int, int, int, int], size: tuple[int, int], factor: int
) -> None:
    """An edge in the middle of the box is in the middle of the frame, for any map size."""
    maps = np.zeros((1, HEIGHT * factor, WIDTH * factor), np.uint8)
    maps[:, :, WIDTH // 2 * factor :] = 1
    maps[:, HEIGHT // 2 * factor :] += 2
    assert box[0] + box[2] / 2 == WIDTH / 2 and box[1] + box[3] / 2 == HEIGHT / 2
    found = read(settings(save(tmp_path / "maps", maps, "grey")), context(1, box=box, size=size))[
        "segmentation.mkv"
    ][0]
    assert found.shape == (size[1], size[0])
    middle, half = size[0] // 2, size[1] // 2
    assert (found[:, :middle] % 2 == 0).all() and (found[:, middle:] % 2 == 1).all()
    assert (found[:half] < 2).all() and (found[half:] >= 2).all()


def test_maps_are_sampled_at_pixel_centres(tmp_path: Path) -> None:
    """So sampling commutes with mirroring; sampling at corners would be biased to one side."""
    maps = np.random.default_rng(0).integers(0, 35, (1, HEIGHT, WIDTH), np.uint8)
    clip = context(1, box=(8, 4, 48, 40), size=(32, 16))
    found = read(settings(save(tmp_path / "maps", maps, "grey")), clip)["segmentation.mkv"]
    mirrored = save(tmp_path / "mirrored", maps[:, ::-1, ::-1], "grey")
    other = read(settings(mirrored), clip)["segmentation.mkv"]
    np.testing.assert_array_equal(other, found[:, ::-1, ::-1])


def test_import_at_small_size_equals_scaled_import(tmp_path: Path) -> None:
    """Importing at a small size gives the same maps as importing at full size and scaling."""
    folder = save(tmp_path / "maps", truth(), "grey")
    small = read(settings(folder), context(size=(32, 24)))["segmentation.mkv"]
    full = LabelTrack(truth(), tuple(NAMES), COLOURS)
    np.testing.assert_array_equal(small, full.scaled(32, 24).labels)


# ---------------------------------------------------------------- storing and reading


def test_parts_are_joined_into_a_signal(tmp_path: Path) -> None:
    clip = context()
    extractor = Extractor(settings(save(tmp_path / "maps", truth(), "instance")), clip)
    part = tmp_path / "00000"
    writer = extractor.part_writer(part)
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for t in range(COUNT):
        writer.add(extractor.step(t, frame, None, False))
    writer.close()
    done = extractor.finish([part], tmp_path, [(0, COUNT)])
    assert set(done.files) == {"segmentation.mkv", "instances.mkv"}
    assert done.coverage == 1 and done.spec["classes"] == NAMES
    assert set(done.measured["share"]) == {"road", "sky", "person", "car"}
    assert sum(done.measured["share"].values()) == pytest.approx(1, abs=1e-3)
    from v2v.signals import load_signal

    track = load_signal("segmentation").read(
        tmp_path, done.spec, 1, COUNT, width=WIDTH, height=HEIGHT
    )
    assert isinstance(track, LabelTrack) and track.instances is not None
    np.testing.assert_array_equal(track.labels, truth()[1:])
    np.testing.assert_array_equal(track.instances, instances_of(truth())[1:])
    assert track.tensor().shape[1] == load_signal("segmentation").channels(done.spec) == 36


def test_all_void_maps_are_an_error(tmp_path: Path) -> None:
    maps = np.full((COUNT, HEIGHT, WIDTH), 255, np.uint8)
    extractor = Extractor(settings(save(tmp_path / "maps", maps, "grey"), classes="voc"), context())
    part = tmp_path / "00000"
    writer = extractor.part_writer(part)
    for t in range(COUNT):
        writer.add(extractor.step(t, np.zeros((HEIGHT, WIDTH, 3), np.uint8), None, False))
    writer.close()
    with pytest.raises(NothingFound, match=r"no known class found in any of the 6 frames"):
        extractor.finish([part], tmp_path, [(0, COUNT)])


@pytest.mark.slow
def test_real_street_labels(clips: Path, tmp_path: Path) -> None:
    """Cityscapes ids of real footage, through all of preprocessing."""
    from v2v.preprocess.build import preprocess

    labels = clips / "street" / "labels"
    chosen = settings(labels, "frames.size=256", "preview.enabled=false")
    preprocess(clips / "street" / "images", ["segmentation"], chosen, output=tmp_path / "street")
    track = ClipStore.open(tmp_path / "street").track("segmentation")
    assert isinstance(track, LabelTrack) and len(track) == 10
    first = np.asarray(Image.open(sorted(labels.iterdir())[0]))
    wanted = np.where(first == 255, LICENSE_PLATE, first)
    share = {i: (wanted == i).mean() for i in np.unique(wanted)}
    for i, part in share.items():
        assert (track.labels[0] == i).mean() == pytest.approx(part, abs=0.005)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("backend", "build"),
    [("deeplab", "deeplabv3_resnet50"), ("lraspp", "lraspp_mobilenet_v3_large")],
)
def test_class_maps_load_weights_and_run(
    backend: str, build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses random weights to test the format only; the labels are meaningless."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    chosen = settings(None, f"segmentation.backend={backend}", backend=backend)
    with pytest.raises(WeightsUnavailable, match=backend):
        Extractor(chosen, context(1))
    torch.manual_seed(0)
    extra = {"aux_loss": True} if backend == "deeplab" else {}
    network = getattr(torchvision_models().segmentation, build)(
        weights=None, weights_backbone=None, num_classes=21, **extra
    )
    enum = getattr(torchvision_models().segmentation, weights.ENUMS[backend][1])
    path = weights.weights_folder() / enum.DEFAULT.url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    with pytest.raises(WeightsUnavailable, match="SHA-256"):
        Extractor(chosen, context(1))
    monkeypatch.setattr(weights, "_check_hash", lambda path: None)
    extractor = Extractor(chosen, context(1))
    assert path.name in extractor.version and extractor.segmenter.classes == VOC
    if backend == "deeplab":  # both backends run the same code; once is enough
        return
    frame = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    record = extractor.step(0, frame, None, False)
    assert record["segmentation.mkv"].shape == (HEIGHT, WIDTH)
    assert record["segmentation.mkv"].dtype == np.uint8
    assert record["segmentation.mkv"].max() < len(VOC)


def test_person_mask_is_thresholded(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.linspace(0, 1, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, 0)
    found = Body(np.zeros((33, 4), np.float32), mask=mask)

    class Tracker:
        state = np.zeros(5, np.float32)

        def __init__(self, *args: object, **options: object) -> None: ...
        def begin(self, state: object) -> None: ...
        def end(self) -> None: ...
        def find(self, frame: object, cut: bool) -> object:
            return None if cut else found

    monkeypatch.setattr(extraction, "BodyTracker", Tracker)
    chosen = load_config(
        PreprocessSettings, "preprocess", overrides=["segmentation.threshold=0.75"]
    )
    extractor = Extractor(chosen, context())
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    nobody = extractor.step(0, frame, None, False)["segmentation.mkv"]
    somebody = extractor.step(1, frame, frame, False)["segmentation.mkv"]
    assert not nobody.any(), "the first frame starts a shot"
    np.testing.assert_array_equal(somebody, (mask > 0.75).astype(np.uint8))
