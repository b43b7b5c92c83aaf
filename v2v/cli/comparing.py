"""Commands that set videos side by side: compare for eyes, study for many eyes and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.rendering import Codec, Crf, Overwrite
from v2v.cli.shared import AsJson, Quiet, console, progress, time_option
from v2v.errors import UsageError
from v2v.runtime import prepare_process

EXAMPLES_COMPARE = """
One video with several as panels in step: labels, differences, and a region enlarged.

The first clip's frame rate and shape are those of all. Clips of another length, rate or size are
fitted to it, and what was done is said.

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
    list[str] | None, typer.Option("--label", "-l", help="One a clip. [default: file names]")
]


def compare(
    clips: Annotated[list[str], typer.Argument(help="2 to 9: footage, or clip stores.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The video. [default: comparison.mp4]"),
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
        typer.Option("--longest", help="Go on to the end of the longest; others stand, dimmed."),
    ] = False,
    difference: Annotated[
        bool, typer.Option("--difference", help="Add panels of |clip - first|.")
    ] = False,
    amplify: Annotated[float, typer.Option(help="How much brighter differences are shown.")] = 4.0,
    zoom: Annotated[
        str | None,
        typer.Option(help="Enlarge X,Y,W,H of all: fractions, or pixels of the first clip."),
    ] = None,
    sound: Annotated[
        int | None,
        typer.Option(help="Of which clip, from 1; 0 for none. [default: the first's]"),
    ] = None,
    codec: Codec = "h264",
    crf: Crf = 18.0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.pipelines.compare import compare as run

    suffix = ".mkv" if codec == "ffv1" else ".webm" if codec == "vp9" else ".mp4"
    with progress(quiet or as_json) as report:
        done = run(
            clips, output or Path(f"comparison{suffix}"), labels=label, size=size, start=start,
            end=end, longest=longest, difference=difference, amplify=amplify, zoom=zoom,
            sound=sound, codec=codec, crf=crf, overwrite=overwrite, report=report,
        )  # fmt: skip
    if as_json:
        import json

        print(json.dumps(done.as_json(), indent=1))
    elif not quiet:
        marked = f", marked as synthetic ({', '.join(done.synthetic)})" if done.synthetic else ""
        _say(
            *done.notes,
            f"{done.video}: {done.frames} frames of {done.width}x{done.height} at"
            f" {float(done.rate):.4g} a second{marked}",
        )


def _say(*lines: str) -> None:
    for line in lines:
        console().print(line, highlight=False, soft_wrap=True, markup=False)


EXAMPLES_STUDY = """
Ask people which of two videos they prefer, not knowing which is which; then count.

Makes a folder with a page that opens in any browser, without a network: each pair is shown in
step, on random sides and in random order, with attention checks between. At its end every
participant saves a file of answers. `--results` counts these files: how often each was preferred,
with 95 percent (Wilson) intervals; who failed an attention check is left out.

Give participants the page and its clips, not `key.json`: it says which clip is what.

**Examples**

    v2v study a.mp4 b.mp4 -o study

    v2v study --pairs renders/small renders/base --question "Which is sharper?" --checks 4

    v2v study --results answers/*.json --key study/key.json
"""


def study(
    given: Annotated[
        list[Path],
        typer.Argument(
            help="One clip of each method; folders with --pairs; answers with --results."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o",
            help="The folder to make. With --results the file. [default: study; results.json"
            " beside the key]",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Folders, one a method; clips of one name belong together."),
    ] = False,
    results: Annotated[
        bool, typer.Option("--results", help="Count files of answers, or folders of them.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="With --results: the key.json of the study.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", help="One a method. [default: names of files or folders]"),
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask.")] = "Which looks more real?",
    checks: Annotated[
        int, typer.Option(help="Pairs whose one side is obviously worse, to see who looks.")
    ] = 2,
    size: Annotated[
        int | None, typer.Option(help="Height of the clips. [default: the first's, up to 720]")
    ] = None,
    start: Start = None,
    end: End = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    if results:
        _count(given, key, output, overwrite=overwrite, quiet=quiet, as_json=as_json)
        return
    if key is not None:
        raise UsageError("--key goes with --results", hint="v2v study --results a.json --key KEY")
    prepare_process()
    from v2v.pipelines.study import study as make

    with progress(quiet or as_json) as report:
        made = make(
            given, output or Path("study"), pairs=pairs, labels=label, question=question,
            checks=checks, size=size, start=start, end=end, overwrite=overwrite, report=report,
        )  # fmt: skip
    if as_json:
        import json

        print(json.dumps(made.as_json(), indent=1))
    elif not quiet:
        _say(
            *made.notes,
            f"{made.page}: {made.pairs} pairs and {made.checks} attention checks;"
            f" keep {made.key} from participants",
        )


def _count(
    given: list[Path], key: Path | None, output: Path | None, *, overwrite: bool, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    from v2v.pipelines.study import RESULTS_FILE, evaluate_answers

    if key is None:
        raise UsageError("--results needs the key", hint="add --key study/key.json")
    path = output or (key if key.is_dir() else key.parent) / RESULTS_FILE
    verdict = evaluate_answers(given, key)
    verdict.write(path, overwrite=overwrite)
    if as_json:
        import json

        print(json.dumps(verdict.as_json(), indent=1))
    elif not quiet:
        people = len(verdict.participants)
        _say(
            *(f"not counted: {file}: {why}" for file, why in verdict.excluded.items()),
            f"{people} participant{'' if people == 1 else 's'}: {verdict.question}",
            *(pair.sentence for pair in verdict.pairs),
        )
        if len(verdict.contents) > 1:
            for name, found in verdict.contents.items():
                _say(*(f"  {name}: {pair.sentence}" for pair in found))
        _say(str(path))
