"""The article's rows and files: all there, as it printed them, and its noise taken from its equal columns."""

import math

import numpy as np
import pytest

from helpers import models
from helpers.engines import COLUMNS
from helpers.speed import article


@pytest.mark.parametrize(("network", "columns", "first_ms"), [("resnet18", 6, 57.7), ("mobilenet_v3_small", 4, 57.5)])
def test_the_articles_rows_are_all_there(network, columns, first_ms):
    rows = article.rows(network).set_index(["column", "batch", "height"])
    assert len(rows) == 16 * columns and set(rows.index.unique(0)) <= set(COLUMNS)
    assert rows.loc[("onnx_fix", 1, 32), "p50_ms"] == pytest.approx(first_ms) and (rows["protocol"] == 0).all()
    assert rows.loc[("pytorch_cpu", 16, 256), "ratio"] == 1 and (rows["width"] == rows.index.get_level_values(2)).all()


def test_its_ratio_and_noise_are_those_of_its_numbers():
    rows = article.rows("resnet18").set_index(["batch", "height", "column"])
    assert rows.loc[(16, 256, "onnx_fix"), "ratio"] == pytest.approx(0.7169 / 0.7315), "here ONNX is the slower one"
    onnx = np.log(rows["p50_ms"].unstack().filter(like="onnx"))
    assert article.noise("resnet18") == pytest.approx(math.sqrt(onnx.var(axis=1, ddof=1).mean()))
    assert 0.03 < article.noise("resnet18") < 0.05, "about 4 %, so that two numbers differ by ±8 % and more"


@pytest.mark.parametrize("network", models.NETWORKS)
def test_its_files_have_counts_and_sizes(network):
    files = article.files(network).loc["article"]
    assert files["nodes_before"] == files["nodes_after"] > 40
    assert files["size_before"] == pytest.approx(files["size_after"], rel=0.01)
