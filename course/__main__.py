"""Run the course from the command line: ``python -m course build``; ``python -m course --help`` lists the rest."""

import argparse
import sys
from pathlib import Path

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


def publish(choice: argparse.Namespace) -> int:
    """Make decks, handouts, the PDF or pictures, and say where they are; return the exit code."""
    from course import handout, notebooks, pdf, pictures, run, slides

    if choice.command == "pictures":
        taken = pages.pictures(choice.site or run.WORK / "html", run.WORK / "pictures")
        print(f"{len(taken)} pictures in {run.WORK / 'pictures'}")
    elif choice.command == "pdf":
        print(book.pdf(choice.out or run.WORK / "course.pdf"))
    elif choice.command == "slides":
        for path in notebooks.choose(choice.only):
            print(slides.slides(path, run.WORK / "slides").resolve().as_uri())
    else:
        for path in notebooks.choose(choice.only):
            print(handout.handout(path, settings.ROOT / "handout", force=choice.force))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m course", description="Run and render the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="run the notebooks and render them as a site in _build/html/")
    build.add_argument("--effort", choices=settings.EFFORTS, help="how much work to do (default: standard)")
    build.add_argument("--out", type=Path, help="folder for the site")
    store = commands.add_parser("store", help="for authors: run notebooks in place and keep their outputs")
    for command in (build, store):
        command.add_argument("--only", nargs="+", default=[], metavar="NN", help="run just these")
    check = commands.add_parser("check", help="check results files before you share them")
    check.add_argument("files", nargs="*", type=Path, help="results files (default: all in data/results/)")
    slides = commands.add_parser("slides", help="make offline decks in _build/slides/")
    handout = commands.add_parser("handout", help="copy the notebooks without solutions to handout/")
    for command in (slides, handout):
        command.add_argument("only", nargs="*", metavar="NN", help="just these; all if none is named")
    handout.add_argument("--force", action="store_true", help="overwrite handouts that somebody has worked in")
    pdf = commands.add_parser("pdf", help="print the whole course, with its stored outputs, as one PDF")
    pdf.add_argument("--out", type=Path, help="the file (default: _build/course.pdf)")
    pictures = commands.add_parser("pictures", help="for authors: picture every page and plot in _build/pictures/")
    pictures.add_argument("--site", type=Path, help="folder of the built site (default: _build/html/)")
    commands.add_parser("paddle", help="export a PaddlePaddle network for notebook 11 (about 1 GB to install)")
    choice = parser.parse_args(arguments)
    try:
        settings.check()
        if choice.command == "check":
            return check_results(choice.files)
        if choice.command in ("build", "store"):
            from course import build as builder

            if choice.command == "store":
                return builder.store(choice.only)
            return builder.build(choice.effort or settings.effort(), choice.only, choice.out or builder.SITE)
        if choice.command == "paddle":
            from course import paddle

            return paddle.main()
        return publish(choice)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
