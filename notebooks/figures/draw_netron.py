"""Have Netron draw ResNet-18's two ONNX graphs into the SVG files beside this script.

Each graph gives two pictures: all of it, and its top (the input with its shape, through the first residual block) at a
size that reads well on a page. Netron's own export makes the drawing; this script only tidies it, so that it needs no
other file, looks the same on a dark page and stays small. Needs Chromium; takes about a quarter of a minute. Run it
from the course's root, again whenever the exporter or Netron changes what it draws:

    python notebooks/figures/draw_netron.py
"""

import logging
import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import netron
import torch
from playwright.sync_api import Browser, Page, Route, TimeoutError, sync_playwright

sys.path.append(str(Path(__file__).resolve().parents[2]))

from helpers.models import load_model
from notebooks.lessons import chromium

FIGURES = Path(__file__).resolve().parent
# name of the picture -> how the exporter is told about the input's dimensions, and a reader about the picture
GRAPHS = {
    "resnet18_fixed": (None, "exported with the fixed input shape 1×3×256×256"),
    "resnet18_dynamic": (
        ({0: "batch", 2: "height", 3: "width"},),
        "exported with the dynamic input shape batch×3×height×width",
    ),
}
TOP_NODES = 8  # Conv, Relu, MaxPool; Conv, Relu, Conv, Add, Relu: the stem and the first residual block
SCALE = 1.4  # Netron writes shapes at 10 px, which is small on a page
TIMEOUT_MS = 30_000

# Netron's files, changed on their way to the browser: file -> (pattern, replacement).
CHANGES = {
    # Netron leaves out a shape of more than 16 characters: batch×3×height×width has 20.
    "view.js": (r"content\.length > 16\b", "content.length > 20"),
    # Fonts of one width on Windows, macOS and Linux, so that the text fits its box wherever the picture is shown.
    "grapher.css": (r"font-family: [^;]+;", "font-family: Arial, Helvetica, sans-serif;"),
}
UNUSED = ("font-family", "text-rendering", "user-select", "pointer-events", "opacity")  # once the root has the font

SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", SVG.strip("{}"))


def main() -> None:
    """Write all pictures."""
    if lack := chromium.missing():
        sys.exit(f"Netron draws in a browser: {lack}")
    logging.basicConfig(level=logging.WARNING)  # else Netron sets it to INFO, for everything
    model, _ = load_model("resnet18", weights="random")
    example = (torch.zeros(1, 3, 256, 256),)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        for name, (dynamic_shapes, how) in GRAPHS.items():
            path = Path(folder) / f"{name}.onnx"
            torch.onnx.export(
                model,
                example,
                path,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=dynamic_shapes,
                external_data=False,
                verbose=False,
            )
            svg = drawn_by_netron(path, browser)
            write(FIGURES / f"{name}.svg", whole(svg, f"ResNet-18 in Netron, {how}"))
            write(FIGURES / f"{name}_top.svg", top(svg, f"The top of ResNet-18 in Netron, {how}"))
        browser.close()


def drawn_by_netron(path: Path, browser: Browser) -> str:
    """Return what Netron's menu entry "Export as SVG" saves for the model at ``path``."""
    address = netron.start(str(path), address=("127.0.0.1", 0), browse=False)
    url = f"http://{address[0]}:{address[1]}/"
    context = browser.new_context(color_scheme="light")
    context.add_cookies([{"name": "consent", "value": "1", "url": url}])  # skips the screen of a first visit
    context.route("**/*", serve)
    page = context.new_page()
    try:
        page.goto(url)
        page.wait_for_selector("body.default #nodes .graph-node", timeout=TIMEOUT_MS)
        with page.expect_download(timeout=TIMEOUT_MS) as download:
            page.keyboard.press("Control+Alt+E")
        return download.value.path().read_text(encoding="utf-8")
    except TimeoutError:
        sys.exit(f"Netron drew nothing within {TIMEOUT_MS // 1000} s. {netrons_message(page)}")
    finally:
        context.close()
        netron.stop(address)


def serve(route: Route) -> None:
    """Let the page have Netron's files, those in ``CHANGES`` changed, and nothing from elsewhere."""
    url = urlsplit(route.request.url)
    change = CHANGES.get(url.path.lstrip("/"))
    if url.hostname != "127.0.0.1":
        route.abort()
    elif change is None:
        route.continue_()
    else:
        answer = route.fetch()
        body, count = re.subn(*change, answer.text())
        if not count:
            print(f"This Netron's {url.path} has no {change[0]!r}: look whether CHANGES is still right.")
        route.fulfill(response=answer, body=body)


def netrons_message(page: Page) -> str:
    """Return what Netron's page says in place of a graph, such as that it is more than 180 days old."""
    text = page.inner_text("#message-text").strip()
    return f"It says: {text!r} Try: python -m pip install --upgrade netron" if text else "It gives no reason."


def whole(svg: str, title: str) -> ElementTree.Element:
    """Return the whole graph."""
    root = tidied(svg)
    nodes = root.findall(f".//{SVG}g[@class='node graph-node']")
    frame(root, float(root.get("width")), float(root.get("height")))
    describe(root, f"{title}: all {len(nodes)} nodes", steps(nodes))
    return root


def top(svg: str, title: str) -> ElementTree.Element:
    """Return the graph down to its node number ``TOP_NODES``, and a line that says how many follow."""
    root = tidied(svg)
    origin = root.find(f"{SVG}g[@id='origin']")
    margin = numbers(origin.get("transform"))[1]
    nodes = sorted(root.findall(f".//{SVG}g[@class='node graph-node']"), key=height)
    kept, below = nodes[:TOP_NODES], nodes[TOP_NODES:]
    end = height(below[0]) - 8  # just above the first node that is left out, where its arrow is still a plain line
    for group in origin.findall(f"{SVG}g"):
        for element in list(group):
            if height(element) >= end - 8:  # 8: else a shape beside that line would be cut through
                group.remove(element)
    width = float(root.get("width"))
    frame(root, width, margin + end + 32)
    clip = ElementTree.SubElement(root, f"{SVG}clipPath", {"id": "top"})
    ElementTree.SubElement(
        clip, f"{SVG}rect", {"y": f"{-margin}", "width": f"{width:.0f}", "height": f"{margin + end}"}
    )
    origin.set("clip-path", "url(#top)")
    place = {"x": f"{width / 2:.0f}", "y": f"{margin + end + 18:.0f}", "text-anchor": "middle"}
    rest = ElementTree.SubElement(root, f"{SVG}text", place | {"font-size": "10", "font-style": "italic"})
    rest.text = f"… {len(below)} more nodes, down to logits"
    describe(root, title, f"{steps(kept)}; {len(below)} more nodes follow.")
    return root


def tidied(svg: str) -> ElementTree.Element:
    """Return Netron's drawing without what it does not need, and with shapes that read well where they cross a line."""
    root = ElementTree.fromstring(svg)
    defs = root.find(f".//{SVG}defs")
    for marker in defs.findall(f"{SVG}marker")[1:]:  # the first one is the arrowhead; the others are for the mouse
        defs.remove(marker)
    for element in root.iter():
        style = element.attrib.pop("style", "")
        kept = [part.strip() for part in style.split(";") if part.strip() and part.split(":")[0].strip() not in UNUSED]
        if kept:
            element.set("style", ";".join(kept))
        for name in ("d", "transform"):
            if name in element.attrib:
                element.set(name, re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.1f}", element.get(name)))
        if element.text:  # Netron's brackets are Chinese punctuation; not every machine has a font with it
            element.text = element.text.replace("\u2329", " ‹").replace("\u232a", "›")
            element.text = element.text.replace("\u3008", " ‹").replace("\u3009", "›")
        element.tail = None
    halo = "paint-order: stroke; stroke: #fff; stroke-width: 3px; stroke-linejoin: round"
    root.find(f".//{SVG}g[@id='edge-labels']").set("style", halo)
    return root


def frame(root: ElementTree.Element, width: float, height: float) -> None:
    """Give the picture its size, and a white ground so that it reads on a dark page, too."""
    root.attrib = {
        "viewBox": f"0 0 {width:.0f} {height:.0f}",
        "width": f"{width * SCALE:.0f}",
        "height": f"{height * SCALE:.0f}",
        "font-family": "Arial, Helvetica, sans-serif",
        "role": "img",
        "aria-labelledby": "title desc",
    }
    ground = {"id": "background", "width": f"{width:.0f}", "height": f"{height:.0f}", "rx": "6", "fill": "#fff"}
    root.find(f"{SVG}rect[@id='background']").attrib = ground


def describe(root: ElementTree.Element, title: str, description: str) -> None:
    """Say what the picture shows, for those who cannot see it."""
    for position, (tag, text) in enumerate({"title": title, "desc": description}.items()):
        element = ElementTree.Element(f"{SVG}{tag}", {"id": tag})
        element.text = text
        root.insert(position, element)


def steps(nodes: list[ElementTree.Element]) -> str:
    """Return the nodes' operators from top to bottom: "input, Conv, Relu, …"."""
    operators = [node.find(f".//{SVG}text").text for node in sorted(nodes, key=height)]
    return ", ".join(["From top to bottom: input", *operators])


def height(element: ElementTree.Element) -> float:
    """Return how far down an element of Netron's drawing starts."""
    return numbers(element.get("transform") or element.get("d") or "0 0")[1]


def numbers(text: str) -> list[float]:
    """Return the numbers in an attribute of an SVG element."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def write(path: Path, root: ElementTree.Element) -> None:
    """Write one picture, with line ends between its shapes so that git shows what changed."""
    for element in root.iter():
        if element.tag in {f"{SVG}{shape}" for shape in ("g", "path", "rect", "text", "desc")}:
            element.tail = "\n"
    path.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")
    print(f"{path.relative_to(FIGURES.parents[1])}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
