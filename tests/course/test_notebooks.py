"""The notebooks as readers get them: outputs fresh and clean, and every notebook runs alone at quick effort."""

import functools
import platform
import re

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from helpers import settings
from helpers.course import notebooks

BOOKS = notebooks.notebooks()
MAX_KIB = 400


def by_name(path):
    return path.stem


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def printed(cell):
    """Return what a cell printed; one print may arrive as several outputs, its newline alone."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def complaints(book):
    """List what a reader should never meet in the outputs of a notebook."""
    cells = code_cells(book)
    found = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("execution counts are not 1..n: not one clean run")
    for number, cell in enumerate(cells, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell [{number}] ends in {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"cell [{number}] writes on stderr: {output.text[:200]}")
    return found


def all_text(book):
    return "\n".join(str(output.get("text", "")) for cell in code_cells(book) for output in cell.outputs)


def test_there_are_notebooks():
    assert len(BOOKS) >= 4


@pytest.mark.parametrize("path", BOOKS, ids=by_name)
def test_stored_outputs_are_clean(path):
    assert complaints(notebooks.read(path)) == []
    assert path.stat().st_size <= MAX_KIB * 1024, f"{path.stat().st_size // 1024} KiB, more than {MAX_KIB}"


@pytest.mark.parametrize("path", BOOKS, ids=by_name)
def test_stored_outputs_are_fresh(path):
    stored = notebooks.read(path).metadata.get("course", {})
    assert stored.get("source_hash") == notebooks.source_hash(path), (
        f"code, helpers or data changed after the stored run: python -m helpers store --only {path.name[:2]}"
    )
    assert stored["effort"] == "standard"


@pytest.mark.parametrize("path", BOOKS, ids=by_name)
def test_structure(path):
    book = notebooks.read(path)
    first, text = book.cells[0].source, "\n".join(cell.source for cell in book.cells)
    number = path.name[:2]
    assert first.startswith(f"# {number} · ")
    assert re.search(r"^\*\*.+\?\*\*$", first, re.MULTILINE), "the first cell asks no question in bold"
    for word in ("After this notebook you can", "**Needs:**", "**Time:**"):
        assert word in first, f"{word!r} is missing from the first cell"
    assert "measured on" in first, "no measured run time"
    assert "## Recap" in text and "## Exercises" in text
    assert "machine.versions_line()" in code_cells(book)[0].source
    assert re.search(r"^[A-Z_]+ = ", code_cells(book)[1].source, re.MULTILINE), "no settings in capitals"
    links = notebooks.navigation(path)
    assert first.endswith(links) and book.cells[-1].source.endswith(links), "run python -m helpers store"
    assert notebooks.minutes(path) in first, "the time shown is not that of the stored run: run python -m helpers store"


@pytest.mark.parametrize("path", BOOKS, ids=by_name)
def test_exercises_ask_check_and_then_solve(path):
    """An answer cell, then its check, then the collapsed solution: in this order a run keeps the reader's answer."""
    cells = notebooks.read(path).cells
    tags = [cell.metadata.get("tags", []) for cell in cells]
    exercises = [at for at, tag in enumerate(tags) if "exercise" in tag]
    assert 2 <= len(exercises) <= 3
    for at in exercises:
        check, solution = cells[at + 1], cells[at + 2]
        assert "check" in tags[at + 1] and "assert" in check.source, f"cell {at + 1} should check the answer before it"
        assert printed(check) == "No answer yet.\n", "the check should wait for an answer"
        assert {"solution", "hide-cell"} <= set(tags[at + 2]), f"cell {at + 2} should be the solution"
        assert solution.metadata.jupyter.source_hidden and solution.metadata.jupyter.outputs_hidden
        assert "is right" in printed(solution), "the solution fails its own check"
    assert sum("solution" in tag for tag in tags) == len(exercises)


@pytest.mark.parametrize(
    "path", [path for path in BOOKS if "models.load_model" in path.read_text("utf-8")], ids=by_name
)
def test_it_says_at_the_top_which_weights_it_runs_on(path):
    top = code_cells(notebooks.read(path))[1]
    assert "print(weights)" in top.source
    assert any("Weights of" in output.get("text", "") for output in top.outputs)


DAMAGE = """
path = {path}
file = onnx.load(path)
kernel = next(tensor for tensor in file.graph.initializer if tensor.name.endswith("layer3.0.conv1.weight"))
kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * np.float32(1.01), kernel.name))
onnx.save(file, path)
"""


def run_damaged(number, path, folder, monkeypatch, *, written_by="onnxsim.simplify("):
    """Run a notebook at quick effort, with one file damaged just after the cell that wrote it."""
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    monkeypatch.setenv("COURSE_WEIGHTS", "stand-in")
    book = notebooks.read(notebooks.choose([number])[0])
    code = [at for at, cell in enumerate(book.cells) if cell.cell_type == "code"]
    at = next(at for at in code if written_by in book.cells[at].source)
    book.cells.insert(at + 1, nbformat.v4.new_code_cell(DAMAGE.format(path=path)))
    notebooks.write(folder / f"{number}_damaged.ipynb", book)
    return notebooks.run(folder / f"{number}_damaged.ipynb", folder=settings.ROOT)


def test_a_damaged_file_changes_the_conclusion_of_06(tmp_path, monkeypatch):
    book = run_damaged("06", 'simplified["resnet18", "new"]', tmp_path, monkeypatch)
    assert "**3 of 4** files are within" in str(book), "the damaged file was counted among the right ones"


def test_a_damaged_file_stops_07_and_is_named(tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError, match=r"outside the tolerance of \S+: resnet18 ONNX-sim: "):
        run_damaged("07", 'files["resnet18", "ONNX-sim"]', tmp_path, monkeypatch)


def test_a_damaged_file_changes_the_conclusion_of_08_and_its_guard_says_why(tmp_path, monkeypatch):
    damaged = 'files["resnet18", "train", "new"]'
    book = run_damaged("08", damaged, tmp_path, monkeypatch, written_by="export_and_watch(subject")
    text = str(book)
    assert "**2 of 6 files are right.**" in text, "the damaged file was counted among the right ones"
    assert "Accepted 2 of 6 files. Wrong files let through: **0**" in text, "the guard let the damaged file through"
    assert "Right although the model was in train mode: 2." in text, "the other right files should be left"


POOR_MACHINE = """
nothing = dict.fromkeys(machine.instruction_sets(), False)  # neither AVX-512 nor VNNI nor bf16
machine.instruction_sets = lambda: nothing
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "openvino" else find_spec(name, *more)
def no_compiler(*arguments, **choices):
    raise RuntimeError("InvalidCxxCompiler: no C++ compiler found")
torch.compile = no_compiler
"""


LIKE_IMAGENETTE = """
import hashlib, io, tarfile
from pathlib import Path
from PIL import Image
from torchvision.datasets import Imagenette
archive = Path({folder!r}) / "imagenette" / "imagenette2-160.tgz"
archive.parent.mkdir()
with tarfile.open(archive, "w:gz") as file:
    for number, wordnet_id in enumerate(("n01440764", "n03888257")):
        for shade in range(3):
            data = io.BytesIO()
            Image.new("RGB", (200, 160), (80 * number, 60 * shade, 90)).save(data, "JPEG")
            entry = tarfile.TarInfo(f"imagenette2-160/val/{{wordnet_id}}/{{shade}}.JPEG")
            entry.size = data.tell()
            data.seek(0)
            file.addfile(entry, data)
right = hashlib.md5(archive.read_bytes()).hexdigest()
Imagenette._ARCHIVES = {{"160px": ("http://127.0.0.1:9/imagenette2-160.tgz", {hash})}}  # nobody answers there
weights = dataclasses.replace(weights, kind="imagenet")
settings.EXPORTS, IMAGENETTE = archive.parents[1], True
"""


@pytest.mark.parametrize(
    ("hash_", "said"),
    [("right", "labelled accuracy: 6 pictures, Imagenette's validation set\n"), ("'0' * 32", "(no Imagenette: ")],
    ids=["whole", "damaged"],
)
def test_labelled_accuracy_of_10_takes_imagenette_where_it_comes_whole(tmp_path, monkeypatch, hash_, said):
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    monkeypatch.setenv("COURSE_WEIGHTS", "stand-in")
    book = notebooks.read(notebooks.choose(["10"])[0])
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    last = next(at for at, cell in enumerate(cells) if "labelled_images()" in cell.source)
    stage = "import dataclasses\n" + LIKE_IMAGENETTE.format(folder=str(tmp_path), hash=hash_)
    look = "print(labelled.shape, sorted(set(label_ids.tolist())))"
    code = [*(cell.source for cell in cells[:last]), stage, cells[last].source, look]
    book.cells = [nbformat.v4.new_code_cell(source) for source in code]
    notebooks.write(tmp_path / "10_labelled.ipynb", book)
    *_, labelled, looked = notebooks.run(tmp_path / "10_labelled.ipynb", folder=settings.ROOT).cells
    assert said in printed(labelled)
    if hash_ == "right":
        assert printed(looked) == "(6, 3, 128, 128) [0, 701]\n", "tench and parachute, by ImageNet's class ids"


NO_ENGINES = """
find_spec = importlib.util.find_spec
hidden = ("openvino", "cv2", "ncnn", "pnnx", "skl2onnx", "keras")
importlib.util.find_spec = lambda name, *more: None if name in hidden else find_spec(name, *more)
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
webpage.missing_runtime = lambda: f"not installed: {webpage.INSTALL}"
paddle_export.NAME = "no_such_file.onnx"
"""


def test_six_engines_and_the_browser_among_them_agreed_in_the_stored_run():
    book = notebooks.read(notebooks.choose(["11"])[0])
    (html,) = (
        output.data["text/html"]
        for cell in code_cells(book)
        for output in cell.outputs
        if "install (MiB)" in output.get("data", {}).get("text/html", "")
    )
    assert re.search(r'col2"[^>]*>ResNet-18</th>', html), "the table's columns have moved"
    rows = re.findall(r'class="row_heading[^>]*>([^<]+)</th>.*?col2"[^>]*>([^<]*)</td>', html, re.DOTALL)
    agreed = [engine for engine, agrees in rows if agrees == "yes"]
    assert len(agreed) >= 6 and "ONNX Runtime Web" in agreed, f"only {', '.join(agreed)}: store 11 with all engines"


def errors_promised(book):
    """Return what 13's first table promises: the message by the section's name."""
    table = next(cell.source for cell in book.cells if "| the message says |" in cell.source)
    return {name: words for words, name in re.findall(r"^\| `(.+?)` \| \[([\w-]+)\]", table, re.MULTILINE)}


def test_the_error_lab_shows_the_errors_that_its_table_promises():
    book = notebooks.read(notebooks.choose(["13"])[0])
    promised, code = errors_promised(book), "\n".join(cell.source for cell in code_cells(book))
    calls = re.findall(r'expect\(\s*"([\w-]+)", (.+?), "(.+?)"\s*\)', code)
    assert len(calls) == code.count("expect(") - 1, "a call of expect() in another form"  # one is its definition
    asserted = {name: words for name, _, words in calls}
    assert len(promised) >= 14
    assert {name: asserted.get(name) for name in promised} == promised, "the table and the lab differ"
    vague = [name for name, kind, _ in calls if re.search(r"\b(Base)?Exception\b", kind)]
    assert not vague, f"these catch any error at all: {vague}"

    prose = "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", prose, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"\]\(#([\w-]+)\)", prose)) == set(sections), "a link or a section without the other"
    for name, text in sections.items():  # "**Guard:** `code`", "**Repair and guard:** words, then `code`"
        assert re.search(r"\*\*[^*]*guard:\*\*[^*\n]*`[^`]+`", text, re.IGNORECASE), f"{name} has no guard as code"


WRONG = {  # notebook -> a wrong answer to each of its exercises
    "00": ["more_without, more_with = -1, -1", "squares = -1"],
    "01": ["most_common = 'Nothing'", "def is_right(path):\n    return True"],
    "02": ["batch_only = dynamic", "smallest = -1"],
    "03": ["p_swapped = -1.0", "batch_logits = np.zeros((len(photos), 1000))"],
    "04": ["batch_over_single = -1.0", "def verdict(over, under):\n    return 'faster'"],
    "05": ["work_shows_at = -1", "one_by_one, in_batches = -1.0, -1.0"],
    "06": [
        "replaced, by = 'Nothing', {'Nothing'}",
        "kept = onnx.ModelProto()",
        "def needs_onnxsim(path, simplified_path):\n    return True",
    ],
    "07": ["smallest_epsilon = 1.0", "factor = -1.0"],
    "08": ["modules = nodes = -1", "exported = error_original = error_copy = -1.0"],
    "09": ["batch_needed = 3", "depthwise_share = -1.0"],
    "10": ["error_per_tensor = -1.0", "def step(low, high):\n    return -1.0\nfactor = -1.0"],
    "11": ["willing = {'nobody'}", "largest = -1.0"],
    "12": ["surely = {(3, 3)}", "named = 99"],
    "13": ["scaled = x.astype(np.float64) / 255", "problem = lambda path, x, expected: ''"],
}
ASK = """
{answer}
try:
    said = check_{number}()
except Exception as error:
    said = f"refused: {{type(error).__name__}}"
print(said)
"""


STAGED = {"09": POOR_MACHINE, "10": POOR_MACHINE, "11": NO_ENGINES}  # these run where things are missing


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that runs a notebook at quick effort from the root, once, with wrong answers at its end.

    From notebooks/ they run in test_site.py, through the build command, and in test_jupyterlab.py.
    """

    @functools.cache
    def run(path):
        book, number = notebooks.read(path), path.name[:2]
        if number in STAGED:
            first = next(at for at, cell in enumerate(book.cells) if cell.cell_type == "code")
            book.cells.insert(first + 1, nbformat.v4.new_code_cell(STAGED[number]))
            for cell in book.cells:
                cell.source = cell.source.replace("if not TORCH_COMPILE:", "if False:")  # try it at quick effort, too
        book.cells += [
            nbformat.v4.new_code_cell(ASK.format(answer=answer, number=exercise))
            for exercise, answer in enumerate(WRONG[number], start=1)
        ]
        copy = tmp_path_factory.mktemp("runs") / path.name
        notebooks.write(copy, book)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COURSE_EFFORT", "quick")
            patch.setenv("COURSE_WEIGHTS", "stand-in")
            return notebooks.run(copy, folder=settings.ROOT)

    return run


@pytest.mark.parametrize("path", BOOKS, ids=by_name)
def test_runs_alone_at_quick_effort_from_the_root(path, runs):
    book, answers = runs(path), WRONG[path.name[:2]]
    assert complaints(book) == []
    tagged = {
        tag: [cell for cell in book.cells if tag in cell.metadata.get("tags", [])] for tag in ("check", "solution")
    }
    assert len(tagged["check"]) == len(tagged["solution"]) == len(answers)
    for number, (check, solution) in enumerate(zip(*tagged.values(), strict=True), start=1):
        assert printed(check) == "No answer yet.\n", f"exercise {number} does not wait for an answer"
        assert f"Exercise {number} is right" in printed(solution), f"its solution fails exercise {number}"
    for number, cell in enumerate(book.cells[-len(answers) :], start=1):
        assert printed(cell).startswith("refused: "), f"exercise {number} takes a wrong answer: {cell.outputs}"
    if path.name.startswith("03"):
        assert "tabby" in str(book) and "虎斑猫" in str(book)


@pytest.mark.parametrize("number", ["09", "10"])
def test_what_a_machine_lacks_is_said_and_stops_nothing(number, runs):
    text = str(runs(notebooks.choose([number])[0]))
    assert "python -m pip install openvino" in text
    assert "InvalidCxxCompiler" in text and "this processor has no bf16 instructions" in text
    if number == "10" and platform.machine().lower() in ("x86_64", "amd64"):
        assert "weights in 7 bits" in text, "without VNNI, sums of INT8 products may overflow"


def test_engines_that_are_not_installed_are_rows_that_say_how_to_get_them(runs):
    text = str(runs(notebooks.choose(["11"])[0]))
    packages = ("openvino", "opencv-python-headless", "ncnn pnnx", "skl2onnx", "keras")
    for command in (*(f"python -m pip install {package}" for package in packages), "npm install --prefix"):
        assert f"not installed: {command}" in text, f"no row says: {command}"
    assert "python -m helpers paddle" in text
