"""Run the course from the command line: ``python -m course build``; ``python -m course --help`` lists the rest."""

import argparse
import signal
import sys
from pathlib import Path

from course import WORK
from helpers import settings


def check_results(paths: list[Path]) -> int:
    """Check results files, all of ``data/results`` if none is given, and say what is in each; return the exit code."""
    from helpers.speed import results

    refused = False
    for path in paths or sorted((settings.DATA / "results").glob("*.jsonl")):
        try:
            print(f"{path.name}: {len(results.read(path))} rows, all in order")
        except (results.ResultsError, OSError) as error:
            refused = True
            print(f"REFUSED {error}")
    return 1 if refused else 0


def run(choice: argparse.Namespace) -> int:
    """Do what the command line asks for, importing no more than that takes; return the exit code."""
    if choice.command == "first":
        from course.first import first

        return first()
    if choice.command == "findings":
        from course import findings

        return findings.hold(choice.names)
    if choice.command == "check":
        return check_results(choice.files)
    if choice.command == "engines":
        from course import engines

        choices = {"again": choice.again, "timed": choice.time, "file": choice.file, "shape": choice.input}
        return engines.command(choice.names, keep=choice.keep == "all", **choices)
    if WORK.parent == settings.EXPORTS:  # the course may only be read
        settings.exports_folder(WORK.name)
    from course import build, notebooks, paper, slides

    if choice.command == "build":
        return build.build(choice.effort or settings.effort(), choice.only, choice.out)
    if choice.command == "store":
        return build.store(choice.only)
    if choice.command == "pictures":
        print(f"{len(paper.pictures(choice.site, WORK / 'pictures'))} pictures in {WORK / 'pictures'}")
    elif choice.command == "pdf":
        print(paper.pdf(choice.out))
    for path in notebooks.choose(choice.only) if choice.command in ("slides", "handout") else ():
        if choice.command == "slides":
            print(slides.slides(path, WORK / "slides").resolve().as_uri())
        else:
            print(notebooks.handout(path, settings.ROOT / "handout", force=choice.force))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and return the exit code: 130 or 143 where Ctrl-C or SIGTERM ended it."""
    parser = argparse.ArgumentParser(prog="python -m course", description="Run and render the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("first", help="a first result in seconds: a network exported, run, and a photo named")
    build = commands.add_parser("build", help="run the notebooks and render them as a site in _build/html/")
    build.add_argument("--effort", choices=settings.EFFORTS, help="how much work to do (default: standard)")
    build.add_argument("--out", type=Path, default=WORK / "html", help="folder for the site")
    store = commands.add_parser("store", help="for authors: run notebooks in place and keep their outputs")
    for command in (build, store):
        command.add_argument("--only", nargs="+", default=[], metavar="NN", help="run just these")
    check = commands.add_parser("check", help="check results files before you share them")
    check.add_argument("files", nargs="*", type=Path, help="results files (default: all in data/results/)")
    surprises = commands.add_parser(
        "findings", help="for maintainers: run the scripts of findings/, and see which still hold"
    )
    surprises.add_argument("names", nargs="*", metavar="NAME", help="parts of their names; all if none is given")
    atlas = commands.add_parser("engines", help="one file, many engines: install each for itself, ask it, write a row")
    atlas.add_argument("names", nargs="*", metavar="NAME", help="engines, as in data/engines.csv; all if none is named")
    atlas.add_argument("--keep", choices=("all", "none"), default="all", help="environments that stay (default: all)")
    atlas.add_argument("--again", action="store_true", help="run rows that stand")
    atlas.add_argument("--time", action="store_true", help="time right answers beside ONNX Runtime, in turns")
    atlas.add_argument("--file", type=Path, help="your own .onnx file, with float32 in and one answer out")
    atlas.add_argument("--input", default="", metavar="1,3,224,224", help="its input's shape, where the file has none")
    slides = commands.add_parser("slides", help="make offline decks in _build/slides/")
    handout = commands.add_parser("handout", help="copy the notebooks without solutions to handout/")
    for command in (slides, handout):
        command.add_argument("only", nargs="*", metavar="NN", help="just these; all if none is named")
    handout.add_argument("--force", action="store_true", help="overwrite handouts that somebody has worked in")
    pdf = commands.add_parser("pdf", help="print the whole course, with its stored outputs, as one PDF")
    pdf.add_argument("--out", type=Path, default=WORK / "course.pdf", help="the file")
    pictures = commands.add_parser("pictures", help="for authors: picture every page and plot in _build/pictures/")
    pictures.add_argument("--site", type=Path, default=WORK / "html", help="folder of the built site")
    choice = parser.parse_args(arguments)
    ended = []

    def stop(number: int, frame: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        settings.check()
        return run(choice)
    except KeyboardInterrupt:
        from course.run import end_children

        end_children()
        print("\nStopped. What had run to its end is kept: the same command goes on from there.", file=sys.stderr)
        return 128 + ended[0]
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
