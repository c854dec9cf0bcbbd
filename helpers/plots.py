"""How pictures look in this course: one style, one way to show a photo and its classes, Chinese where a font has it."""

import io
from functools import cache

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib import font_manager, rcsetup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

CJK_FONTS = (  # Linux, Windows, macOS
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Heiti SC", "Arial Unicode MS"),
)
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc3311", "#aa4499", "#777777"


@cache
def cjk_font() -> str | None:
    """Return the first installed font that can draw Chinese, or None."""
    installed = set(font_manager.get_font_names())
    return next((name for name in CJK_FONTS if name in installed), None)


def use_course_style(*, photos: bool = False) -> None:
    """Set matplotlib's rcParams and pandas' column width for the course; call it once, in a notebook's second cell.

    Args:
        photos: store figures as small JPEG, for notebooks that show photos: as PNG they are five times larger.
    """
    pd.set_option("display.max_colwidth", None)  # tables show their text in full
    mpl.rc("font", size=11, family=["DejaVu Sans", *filter(None, [cjk_font()])])
    mpl.rc("figure", figsize=(8, 4), dpi=80 if photos else 100, facecolor="white")  # readable on a dark page, too
    mpl.rc("figure.constrained_layout", use=True)
    mpl.rc("axes", grid=True, axisbelow=True, prop_cycle=rcsetup.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, RED, GREY]))
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("grid", color="#dddddd")
    mpl.rc("legend", frameon=False)
    if (shell := get_ipython()) is None:  # a plain script
        return
    plt.get_backend()  # settles the backend now: settling it later would undo what follows
    if photos:
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
    else:
        set_matplotlib_formats("png")
        shell.display_formatter.formatters["image/png"].for_type(Figure, _small_png)


def _small_png(figure: Figure) -> bytes:
    """Return the figure as PNG with 128 colours: a quarter of the bytes, and no eye sees it in a plot."""
    full = Image.open(io.BytesIO(print_figure(figure, "png")))
    small = io.BytesIO()
    full.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def drawable_language(language: str) -> str:
    """Return the language that labels in a plot can be drawn in: "english" where no font has Chinese characters."""
    return "english" if language == "chinese" and cjk_font() is None else language


def show_photo(photo: Image.Image, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Draw a photo without axes; return the Axes, the current ones if none are given."""
    ax = plt.gca() if ax is None else ax
    ax.imshow(photo)
    ax.set_title(title)
    ax.axis("off")
    return ax


def show_top_k(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw probabilities as horizontal bars, the most probable on top.

    Args:
        table: what ``labels.top_k`` returns: one row per class, with name and probability (0 to 1).
        ax: where to draw; the current Axes if not given.
    Returns:
        The Axes.
    """
    ax = plt.gca() if ax is None else ax
    bars = ax.barh(table["name"], table["probability"], color=BLUE)
    ax.bar_label(bars, fmt="%.3f", padding=3)
    ax.invert_yaxis()
    ax.set(xlabel="probability", xlim=(0, 1.15), xticks=[0, 0.25, 0.5, 0.75, 1])
    ax.grid(axis="y", visible=False)
    return ax
