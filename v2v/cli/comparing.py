"""Commands that compare videos: compare shows them side by side, study asks participants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.shared import (
    AsJson,
    Codec,
    Crf,
    Overwrite,
    Quiet,
    print_result,
    progress,
    time_option,
)
from v2v.defaults import CODEC, CRF, SUFFIXES
from v2v.errors import UsageError
from v2v.runtime import prepare_process

EXAMPLES_COMPARE = """
Show several clips side by side in one video, with labels, differences and an enlarged region.

The first clip sets the frame rate and the aspect ratio. Clips of another length, rate or size are
adapted to it, and a note explains how.

**Examples**

    v2v compare before.mp4 after.mp4

    v2v compare real.mp4 small.mp4 base.mp4 --difference --zoom 0.4,0.1,0.2,0.2 -o all.mp4

    v2v compare a.mp4 b.mp4 --label "one hour" --label "two hours" --longest --sound 2
"""

Start = Annotated[
    float | None, time_option("--start", "First moment to show, in seconds or hh:mm:ss.")
]
End = Annotated[float | None, time_option("--end", "Where to stop, in seconds or hh:mm:ss.")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", help="One label per clip. [default: file names]"),
]


def compare(
    clips: Annotated[list[str], typer.Argument(help="2 to 9 videos or clip stores.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Video to write. [default: comparison.mp4]"),
    ] = None,
    label: Labels = None,
    size: Annotated[
        int | None,
        typer.Option(help="Height of a panel. [default: the first clip's, if it fits a screen]"),
    ] = None,
    start: Start = None,
    end: End = None,
    longest: Annotated[
        bool,
        typer.Option(
            "--longest",
            help="Continue to the end of the longest clip; the others stop at their last frame,"
            " dimmed.",
        ),
    ] = False,
    difference: Annotated[
        bool, typer.Option("--difference", help="Add panels of |clip - first|.")
    ] = False,
    amplify: Annotated[float, typer.Option(help="Factor that amplifies differences.")] = 4.0,
    zoom: Annotated[
        str | None,
        typer.Option(help="Region X,Y,W,H to enlarge: fractions, or pixels of the first clip."),
    ] = None,
    sound: Annotated[
        int | None,
        typer.Option(help="Clip that provides the sound, from 1; 0 for none. [default: the first]"),
    ] = None,
    codec: Codec = CODEC,
    crf: Crf = CRF,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.evaluation.compare.compare import compare as run

    suffix = SUFFIXES.get(codec, ".mp4")
    with progress(quiet or as_json) as report:
        done = run(
            clips, output or Path(f"comparison{suffix}"), labels=label, size=size, start=start,
            end=end, longest=longest, difference=difference, amplify=amplify, zoom=zoom,
            sound=sound, codec=codec, crf=crf, overwrite=overwrite, report=report,
        )  # fmt: skip
    marked = f", marked as synthetic ({', '.join(done.synthetic)})" if done.synthetic else ""
    print_result(
        done.as_json(),
        *done.notes,
        f"{done.video}: {done.frames} frames of {done.width}x{done.height} at"
        f" {float(done.rate):.4g} fps{marked}",
        quiet=quiet, as_json=as_json,
    )  # fmt: skip


EXAMPLES_STUDY = """
Run a blind preference study: participants choose between two videos; then count the answers.

Writes a folder with a page that opens in any browser, without a network. It shows each pair in
sync, on random sides and in random order, with attention checks in between. At the end, each
participant saves a file of answers. `--results` counts how often each method was preferred, with
95 percent (Wilson) intervals; it excludes participants who fail an attention check.

Give participants the page and its clips, but not `key.json`: it identifies the clips.

**Examples**

    v2v study a.mp4 b.mp4 -o study

    v2v study --pairs renders/small renders/base --question "Which is sharper?" --checks 4

    v2v study --results answers/*.json --key study/key.json
"""


def study(
    given: Annotated[
        list[Path],
        typer.Argument(
            help="One clip per method; with --pairs, folders; with --results, answer files."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o",
            help="Folder to write; with --results, the file. [default: study; results.json beside"
            " the key]",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="One folder per method; clips of the same name form a pair."),
    ] = False,
    results: Annotated[
        bool, typer.Option("--results", help="Count answer files, or folders of them.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="With --results: the key.json of the study.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", help="One per method. [default: names of files or folders]"),
    ] = None,
    question: Annotated[str, typer.Option(help="Question to ask.")] = "Which looks more real?",
    checks: Annotated[
        int, typer.Option(help="Number of attention checks: pairs with one obviously worse side.")
    ] = 2,
    size: Annotated[
        int | None, typer.Option(help="Height of the clips. [default: the first's, up to 720]")
    ] = None,
    start: Start = None,
    end: End = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    if results:
        _count(given, key, output, overwrite=overwrite, quiet=quiet, as_json=as_json)
        return
    if key is not None:
        raise UsageError("--key needs --results", hint="v2v study --results a.json --key KEY")
    prepare_process()
    from v2v.evaluation.study.make import study as make_study

    with progress(quiet or as_json) as report:
        made = make_study(
            given, output or Path("study"), pairs=pairs, labels=label, question=question,
            checks=checks, size=size, start=start, end=end, overwrite=overwrite, report=report,
        )  # fmt: skip
    print_result(
        made.as_json(),
        *made.notes,
        f"{made.page}: {made.pairs} pairs and {made.checks} attention checks;"
        f" keep {made.key} from participants",
        quiet=quiet, as_json=as_json,
    )  # fmt: skip


def _count(
    given: list[Path], key: Path | None, output: Path | None, *, overwrite: bool, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    from v2v.evaluation.study.records import RESULTS_FILE
    from v2v.evaluation.study.results import evaluate_answers

    if key is None:
        raise UsageError("--results needs --key", hint="add --key study/key.json")
    path = output or (key if key.is_dir() else key.parent) / RESULTS_FILE
    outcome = evaluate_answers(given, key)
    outcome.write(path, overwrite=overwrite)
    people = len(outcome.participants)
    contents = outcome.contents if len(outcome.contents) > 1 else {}
    print_result(
        outcome.as_json(),
        *(f"excluded: {file}: {why}" for file, why in outcome.excluded.items()),
        f"{people} participant{'' if people == 1 else 's'}: {outcome.question}",
        *(pair.sentence for pair in outcome.pairs),
        *(f"  {name}: {pair.sentence}" for name, found in contents.items() for pair in found),
        str(path),
        quiet=quiet, as_json=as_json,
    )  # fmt: skip
