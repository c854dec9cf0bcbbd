"""helpers/plots.py: the style is set, bars show the numbers, Chinese is drawn where it can be."""

import io
import warnings
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.formatters import PlainTextFormatter
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from helpers import labels, plots

SHELL = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"image/png": PlainTextFormatter()}))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def formats(monkeypatch):
    """Leave matplotlib as it was; return the figure formats asked for (the real call would start an IPython)."""
    asked = []
    monkeypatch.setattr(plots, "get_ipython", lambda: SHELL)  # as in a notebook
    monkeypatch.setattr(plots, "set_matplotlib_formats", lambda *names, **_: asked.extend(names))
    with mpl.rc_context():
        mpl.rcdefaults()
        yield asked
    plt.close("all")


def top_k(count=5, language="english", last=12):
    logits = np.linspace(0, last, 1000)
    return labels.top_k(np.roll(logits, 300), count, language=language)


@pytest.mark.parametrize(("photos", "expected"), [(True, "jpeg"), (False, "png")])
def test_style_is_set_and_photos_are_stored_as_jpeg(formats, photos, expected):
    plots.use_course_style(photos=photos)
    assert formats == [expected] and mpl.rcParams["figure.facecolor"] == "white"
    colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    assert colours[0] == plots.BLUE and len(set(colours)) == 6, "two series of one plot would share a colour"


@pytest.mark.parametrize(("count", "last"), [(1, 12), (5, 12), (3, 1e5)], ids=["one", "five", "a certain one"])
def test_top_k_draws_one_bar_a_row(count, last):
    table = top_k(count, last=last)
    plots.use_course_style()
    ax = plots.show_top_k(table)
    ax.figure.canvas.draw()
    assert [bar.get_width() for bar in ax.patches] == table["probability"].tolist(), "a bar's width is not its row's"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == table["name"].tolist()
    assert [text.get_text() for text in ax.texts] == [f"{p:.3f}" for p in table["probability"]]
    heights = [bar.get_window_extent().y0 for bar in ax.patches]  # px, from the bottom of the figure
    assert heights == sorted(heights, reverse=True), "the most probable class is not on top"
    assert ax.texts[0].get_window_extent().x1 <= ax.bbox.x1, "the number beside a full bar lies outside the axes"


@pytest.mark.parametrize(
    "draw", [lambda ax: plots.show_top_k(top_k(), ax), lambda ax: plots.show_photo(Image.fromarray(PIXELS), ax)]
)
def test_given_axes_are_used_and_returned(draw):
    _, (left, right) = plt.subplots(1, 2)  # right is the current one, left is what is given
    assert draw(left) is left and left.has_data() and not right.has_data()
    assert not left.images or np.array_equal(left.images[0].get_array(), PIXELS)


@pytest.mark.parametrize(
    ("installed", "font"), [(["DejaVu Sans"], None), (["SimHei", "Noto Sans CJK SC"], "Noto Sans CJK SC")]
)
def test_chinese_needs_a_font_and_takes_the_first(monkeypatch, installed, font):
    monkeypatch.setattr(font_manager, "get_font_names", lambda: installed)
    assert plots.cjk_font.__wrapped__() == font
    monkeypatch.setattr(plots, "cjk_font", lambda: font)
    assert plots.drawable_language("english") == "english"
    assert plots.drawable_language("chinese") == ("chinese" if font else "english")


@pytest.mark.skipif(not plots.cjk_font(), reason=f"none of these fonts is installed: {', '.join(plots.CJK_FONTS)}")
def test_the_font_draws_every_chinese_name_without_boxes():
    path = font_manager.findfont(font_manager.FontProperties(family=plots.cjk_font()), fallback_to_default=False)
    known = set(map(chr, font_manager.get_font(path).get_charmap()))
    assert [name for name in labels.class_names("chinese") if set(name) - known] == []
    plots.use_course_style()
    ax = plots.show_top_k(top_k(language="chinese"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph … missing from font(s)" is a warning
        ax.figure.canvas.draw()


def test_plots_are_stored_as_small_png():
    plots.use_course_style()
    draw = SHELL.display_formatter.formatters["image/png"].type_printers[Figure]
    fig, ax = plt.subplots()
    ax.plot([1, 2, 3], color=plots.BLUE)
    full = io.BytesIO()
    fig.savefig(full, bbox_inches="tight")
    small = draw(fig)
    picture = Image.open(io.BytesIO(small))
    assert picture.format == "PNG" and len(small) < len(full.getvalue()) / 2
    shades = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    blue = [int(plots.BLUE[i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(shades - blue).sum(axis=1).min() <= 12, "the line lost its colour"
