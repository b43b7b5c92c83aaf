"""Settings: accepted values, precedence of sources, and errors for mistakes."""

from __future__ import annotations

from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from v2v.config import Config, PreprocessSettings, load_config
from v2v.errors import ConfigError, UsageError
from v2v.prediction.settings import PredictSettings
from v2v.training.settings import TrainSettings

SCHEMAS: dict[tuple[str, ...], type[Config]] = {
    ("preprocess",): PreprocessSettings,
    ("train",): TrainSettings,
    ("train", "train-pose"): TrainSettings,  # a task's defaults override those of all tasks
    ("train", "train-face"): TrainSettings,
    ("train", "train-street"): TrainSettings,
    ("predict",): PredictSettings,
}
YAMLS = sorted(f.name for f in files("v2v.configs").iterdir() if f.name.endswith(".yaml"))


def load(*overrides: str, **options: object) -> PreprocessSettings:
    return load_config(
        PreprocessSettings,
        "preprocess",
        overrides=list(overrides),
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("names", SCHEMAS)
def test_every_yaml_loads(names: tuple[str, ...]) -> None:
    assert isinstance(load_config(SCHEMAS[names], *names), SCHEMAS[names])


@pytest.mark.parametrize("written", ["on", "off", "auto", "'off'", "true"])
def test_switches_accept_common_spellings(written: str) -> None:
    """YAML parses a bare off as false."""
    found = load_config(TrainSettings, "train", overrides=[f"generator.background_plate={written}"])
    expected = {"true": "on"}.get(written, written.strip("'"))
    assert found.generator.background_plate == expected


def test_every_yaml_has_a_schema() -> None:
    assert {names[-1] + ".yaml" for names in SCHEMAS} == set(YAMLS)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("old, new", TrainSettings.renamed_keys.items())
def test_renamed_keys_name_their_new_name(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting {old}") as caught:
        load_config(TrainSettings, "train", overrides=[f"{old}=1"])
    assert caught.value.hint == f"it is now called {new}"
    found = load_config(TrainSettings, "train")
    for part in new.split("."):
        found = getattr(found, part)  # the new setting exists


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("pose.max_gpa=1", "pose.max_gpa", "did you mean pose.max_gap?"),
        ("poes.max_gap=1", "poes", "did you mean pose?"),
        ("frames.fsp=25", "frames.fsp", "did you mean frames.fps?"),
        (
            "pose.smoothing.min_cutof=1",
            "pose.smoothing.min_cutof",
            "did you mean pose.smoothing.min_cutoff? known here: beta, min_cutoff",
        ),
        ("flow.zzz=1", "flow.zzz", "known here: backend, device"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert caught.value.message == f"unknown setting {key}"
    assert caught.value.hint is not None and hint in caught.value.hint
    assert ("did you mean" in caught.value.hint) == ("did you mean" in hint)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("flow.scale=2", "flow.scale"),
        ("flow.scale=0", "flow.scale"),
        ("flow.backend=rafft", "flow.backend"),
        ("pose.max_gap=-1", "pose.max_gap"),
        ("pose.max_gap=nan", "pose.max_gap"),
        ("pose.min_detection=1.1", "pose.min_detection"),
        ("pose.smoothing.beta=-1", "pose.smoothing.beta"),
        ("frames.size=abc", "frames.size"),
        ("frames.size=512x", "frames.size"),
        ("frames.size=[1,2,3]", "frames.size"),
        ("frames.fps=fast", "frames.fps"),
        ("frames.fps=0", "frames.fps"),
        ("frames.fps=-25", "frames.fps"),
        ("frames.fps=25/0", "frames.fps"),
        ("frames.start=-1", "frames.start"),
        ("frames=3", "frames"),
        ("pose=null", "pose"),
        ("preview.enabled=maybe", "preview.enabled"),
        ("preview.side=9", "preview.side"),
    ],
)
def test_a_wrong_value_names_the_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert caught.value.message.startswith(f"setting {key} cannot be ")


@pytest.mark.parametrize(
    "override, message",
    [
        ("face.distance_maps=maybe", "data.signal_options.face.distance_maps cannot be 'maybe'"),
        ("face=true", "data.signal_options.face cannot be True"),
        ("face.distance=true", "unknown option of the signal face 'distance'"),
        ("fase.distance_maps=true", "unknown signal 'fase'"),
        ("pose.distance_maps=true", "the signal pose has none"),
        ("face.distance_maps=true", "the model renders from pose"),
    ],
)
def test_wrong_options_of_a_signal(override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(TrainSettings, "train", overrides=[f"data.signal_options.{override}"])
    assert message in caught.value.message


def test_options_that_are_off_are_not_recorded() -> None:
    """A run that was made before an option existed can be resumed."""
    off = load_config(TrainSettings, "train", "train-face")
    assert "signal_options" not in off.model_dump()["data"]
    on = load_config(
        TrainSettings, "train", "train-face", overrides=["data.signal_options.face.distance_maps=1"]
    )
    recorded = on.model_dump(mode="json")
    assert recorded["data"]["signal_options"] == {"face": {"distance_maps": True}}
    assert recorded["data"] == off.model_dump(mode="json")["data"] | {
        "signal_options": {"face": {"distance_maps": True}}
    }


@pytest.mark.parametrize(
    "override", ["a", "=3", "pose.max_gap", "pose.max_gap=[1", "pose.max_gap=${nowhere}"]
)
def test_an_unreadable_override_is_an_error(override: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read"):
        load(override)


@pytest.mark.parametrize(
    "text", ["frames: {fps: 25", "- 1\n- 2", "3", "\t- x", "a: &x [*x]", "\xff\xfe"]
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, "latin-1")
    with pytest.raises(ConfigError, match=r"cannot read .*broken\.yaml"):
        load(file=path)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
FILES = {
    "bomb": (BOMB, "more than 20000 values"), "deep": ("{a: " * 3000, "levels deep"),
    "deep list": ("frames: " + "[" * 5000, "levels deep"),
    "recursive": ("frames: &f\n  size: *f\n", "within its own value"),
    "two": ("a: 1\n---\nb: 2\n", "single document"), "set": ("frames: !!set {a, b}\n", "c.yaml"),
    "code": ("frames: !!python/name:os.system\n", "c.yaml"), "text": ("hello\n", "expected"),
    "exponent": ("frames: {fps: '1e99999999'}\n", "frames.fps"),
    "infinite": ("frames: {end: .inf}\n", "frames.end"),
    "nan": ("frames: {start: .nan}\n", "frames.start"),
    "date": ("frames: {size: 2020-01-01}\n", ""), "superscript": ("frames: {size: '²x²'}\n", ""),
    "binary": ("frames: {size: !!binary aGVsbG8=}\n", ""),
    "environment": ("frames: {crop: '${oc.env:HOME}'}\n", "frames.crop"),
    "not given": ("frames: {size: '???'}\n", "frames.size is"),
    "each other": ("frames: {size: '${frames.fps}', fps: '${frames.size}'}\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_raises_a_clear_error(case: str, tmp_path: Path) -> None:
    text, expected = FILES[case]
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=expected or None) as caught:
        load(file=path)
    assert len(caught.value.message) < 700


def test_aliases_are_expanded(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("pose: &p {max_gap: 0.25}\nface: *p\n")
    settings = load(file=path)
    assert settings.pose.max_gap == settings.face.max_gap == 0.25


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such config file: .*gone\.yaml"):
        load(file=tmp_path / "gone.yaml")


# ---------------------------------------------------------------- sources and values


def test_file_then_overrides_then_values(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("pose: {max_gap: 0.1, max_jump: 0.1, min_tracking: 0.1}\n", "utf-8")
    settings = load(
        "pose.max_jump=0.2", "pose.min_tracking=0.2", file=path, values={"pose.min_tracking": 0.3}
    )
    pose, default = settings.pose, load().pose
    assert (pose.max_gap, pose.max_jump, pose.min_tracking) == (0.1, 0.2, 0.3)
    assert pose.min_detection == default.min_detection
    assert settings.face == load().face


def test_the_later_of_two_overrides_wins() -> None:
    assert load("flow.scale=0.25", "flow.scale=0.75").flow.scale == 0.75


def test_an_empty_file_and_values_of_none_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n", "utf-8")
    assert load(file=path, values={"frames.fps": None}) == load()


def test_an_override_of_one_value_keeps_its_neighbours() -> None:
    smoothing = load("pose.smoothing.beta=2").pose.smoothing
    assert smoothing is not None
    assert (smoothing.beta, smoothing.min_cutoff) == (2, load().pose.smoothing.min_cutoff)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E2", 100.0), ("5e-1", 0.5), ("0.25", 0.25), ("1", 1.0)]
)
def test_numbers_in_any_notation(text: str, value: float) -> None:
    """YAML 1.1 parses 1e-4 as a string."""
    gap = load(f"pose.max_gap={text}").pose.max_gap
    assert isinstance(gap, float) and gap == value


def test_numbers_in_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("pose: {max_gap: 1e-4}\n", "utf-8")
    assert load(file=path).pose.max_gap == 1e-4


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25", Fraction(25)),
        ("30", Fraction(30)),
        ("29.97", Fraction(30000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("25.0", Fraction(25)),
        ("15/2", Fraction(15, 2)),
        ("0.5", Fraction(1, 2)),
        ("null", None),
    ],
)
def test_frame_rates(text: str, rate: Fraction | None) -> None:
    assert load(f"frames.fps={text}").frames.fps == rate
    if text != "null":
        assert load(values={"frames.fps": text}).frames.fps == rate


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("640x360", (640, 360)), ("640X360", (640, 360)), ("[64,32]", (64, 32))],
)
def test_sizes(text: str, size: int | tuple[int, int]) -> None:
    assert load(f"frames.size={text}").frames.size == size


def test_settings_of_one_signal() -> None:
    settings = load("plugins.depth.model=big")
    assert settings.of("pose") is settings.pose
    assert settings.of("depth") == {"model": "big"}
    assert settings.of("unheard") == {}
    assert settings.of("fingerprint") == {}


# ---------------------------------------------------------------- fingerprints and defaults


def test_equal_values_have_equal_fingerprints() -> None:
    a, b = load("pose.max_gap=0.5", "frames.fps=29.97"), load("frames.fps=30000/1001")
    assert a.fingerprint() != b.fingerprint()
    b = load(values={"pose.max_gap": 0.5, "frames.fps": "30000/1001"})
    assert a == b and a.fingerprint() == b.fingerprint()
    assert a.pose.fingerprint() == b.pose.fingerprint() != load().pose.fingerprint()


def test_each_setting_is_in_the_fingerprint() -> None:
    other = {
        "frames.size": 64, "frames.crop": "face", "pose.smoothing": None, "face.max_jump": 0.5,
        "segmentation.classes": ["sky", "road"], "segmentation.void": [255],
        "flow.weights": "a.pth", "preview.side": 100,
        "plugins.depth.model": "big",
    }  # fmt: skip
    prints = [load(values={key: value}).fingerprint() for key, value in other.items() if value]
    prints += [load("pose.smoothing=null").fingerprint(), load().fingerprint()]
    assert len(set(prints)) == len(prints) == len(other) + 1


def test_settings_are_immutable() -> None:
    settings = load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.pose.max_gap = 3.0
    with pytest.raises(ValidationError, match="frozen"):
        settings.pose = settings.face


def test_defaults_are_only_in_the_yaml() -> None:
    """Each default is written once: the schema has none, and the YAML has every setting."""

    def keys(schema: type[Config]) -> set[str]:
        return {name for name, field in schema.model_fields.items() if field.is_required()}

    raw = OmegaConf.create(files("v2v.configs").joinpath("preprocess.yaml").read_text("utf-8"))
    assert (
        set(raw) == keys(PreprocessSettings) == set(PreprocessSettings.model_fields) - {"plugins"}
    )
    for name, part in raw.items():
        schema = PreprocessSettings.model_fields[str(name)].annotation
        assert isinstance(schema, type) and set(part) == keys(schema) == set(schema.model_fields)
