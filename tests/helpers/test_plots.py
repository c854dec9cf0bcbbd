"""helpers/plots.py: the style is set, bars show the numbers, Chinese is drawn where it can be."""

import io
import warnings
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import PlainTextFormatter
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from helpers import labels, plots

PHOTO = Image.new("RGB", (8, 8))
SHELL = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"image/png": PlainTextFormatter()}))


@pytest.fixture(autouse=True)
def formats(monkeypatch):
    """Leave matplotlib as it was; return the figure formats asked for (the real call would start an IPython)."""
    asked = []
    monkeypatch.setattr(plots, "get_ipython", lambda: SHELL)  # as in a notebook
    monkeypatch.setattr(plots, "set_matplotlib_formats", lambda *names, **options: asked.append((names, options)))
    with mpl.rc_context():
        mpl.rcdefaults()
        yield asked
    plt.close("all")


def top_k(count=5, language="english"):
    logits = np.linspace(0, 12, 1000)
    return labels.top_k(np.roll(logits, 300), count, language=language)


@pytest.mark.parametrize(("photos", "expected"), [(True, "jpeg"), (False, "png")])
def test_style_is_set_and_figures_are_stored_small(formats, photos, expected):
    plots.use_course_style(photos=photos)
    assert [names for names, _ in formats] == [(expected,)]
    assert mpl.rcParams["figure.facecolor"] == "white" and mpl.rcParams["figure.constrained_layout.use"]
    assert mpl.rcParams["font.family"][0] == "DejaVu Sans"
    colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    assert colours[0] == plots.BLUE and len(set(colours)) == 6, "two series of one plot would share a colour"


@pytest.mark.parametrize("count", [1, 5])
def test_top_k_draws_one_bar_a_row(count):
    table = top_k(count)
    ax = plots.show_top_k(table)
    ax.figure.canvas.draw()
    assert [bar.get_width() for bar in ax.patches] == table["probability"].tolist(), "a bar's width is not its row's"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == table["name"].tolist()
    assert [text.get_text() for text in ax.texts] == [f"{p:.3f}" for p in table["probability"]]
    heights = [bar.get_window_extent().y0 for bar in ax.patches]  # px, from the bottom of the figure
    assert heights == sorted(heights, reverse=True), "the most probable class is not on top"
    assert ax.get_xlabel() == "probability"


def test_certain_class_fits_into_the_axes():
    table = pd.DataFrame({"class_id": [281], "name": ["tabby"], "probability": [1.0]})
    plots.use_course_style()
    ax = plots.show_top_k(table)
    ax.figure.canvas.draw()
    assert ax.texts[0].get_window_extent().x1 <= ax.bbox.x1, "the number beside a full bar lies outside the axes"


def test_photo_is_shown_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    ax = plots.show_photo(Image.fromarray(pixels), title="cat.png")
    np.testing.assert_array_equal(ax.images[0].get_array(), pixels, "the drawn pixels are not the photo's")
    assert ax.get_title() == "cat.png"
    assert not ax.axison, "a photo has no use for axes"


@pytest.mark.parametrize("draw", [lambda ax: plots.show_top_k(top_k(), ax), lambda ax: plots.show_photo(PHOTO, ax)])
def test_given_axes_are_used_and_returned(draw):
    _, (left, right) = plt.subplots(1, 2)  # right is the current one, left is what is given
    assert draw(left) is left
    assert left.has_data(), "nothing was drawn into the given Axes"
    assert not right.has_data(), "something was drawn into other Axes than the given ones"


@pytest.mark.parametrize("font", [None, "SimHei"])
def test_drawable_language_needs_a_font(monkeypatch, font):
    monkeypatch.setattr(plots, "cjk_font", lambda: font)
    assert plots.drawable_language("english") == "english"
    assert plots.drawable_language("chinese") == ("chinese" if font else "english")


def test_cjk_font_is_the_first_installed(monkeypatch):
    for installed, expected in (["DejaVu Sans"], None), (["SimHei", "Noto Sans CJK SC"], "Noto Sans CJK SC"):
        monkeypatch.setattr(font_manager, "get_font_names", lambda installed=installed: installed)
        assert plots.cjk_font.__wrapped__() == expected


@pytest.fixture
def installed_font():
    name = plots.cjk_font()
    if name is None:
        pytest.skip(f"none of these fonts is installed: {', '.join(plots.CJK_FONTS)}")
    return name


def test_font_has_every_character_of_every_chinese_name(installed_font):
    path = font_manager.findfont(font_manager.FontProperties(family=installed_font), fallback_to_default=False)
    known = set(map(chr, font_manager.get_font(path).get_charmap()))
    boxes = {name: set(name) - known for name in labels.class_names("chinese") if set(name) - known}
    assert not boxes, f"{installed_font} would draw boxes in these names: {boxes}"


def test_chinese_bars_are_drawn_without_boxes(installed_font):
    plots.use_course_style()
    ax = plots.show_top_k(top_k(language="chinese"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph … missing from font(s)" is a warning
        ax.figure.canvas.draw()


def test_plots_are_stored_as_small_png():
    plots.use_course_style()
    draw = SHELL.display_formatter.formatters["image/png"].type_printers[Figure]
    fig, ax = plt.subplots()
    ax.plot([1, 2, 3], color=plots.BLUE, label="a line")
    ax.legend()
    full = io.BytesIO()
    fig.savefig(full, bbox_inches="tight")
    small = draw(fig)
    picture = Image.open(io.BytesIO(small))
    assert picture.format == "PNG" and picture.mode == "P", "128 colours are kept in a palette"
    assert len(small) < len(full.getvalue()) / 2
    shades = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    blue = [int(plots.BLUE[i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(shades - blue).sum(axis=1).min() <= 12, "the line lost its colour"
