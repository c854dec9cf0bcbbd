"""The article's rows and files: all there, as it printed them, and its noise taken from its equal columns."""

import math

import numpy as np
import pytest

from helpers import models
from helpers.engines import COLUMNS
from helpers.speed import article


@pytest.mark.parametrize(("network", "columns", "first_ms"), [("resnet18", 6, 57.7), ("mobilenet_v3_small", 4, 57.5)])
def test_the_articles_rows_are_all_there(network, columns, first_ms):
    rows = article.rows(network)
    assert len(rows) == 16 * columns and set(rows["column"]) <= set(COLUMNS)
    first = rows[(rows["column"] == "onnx_fix") & (rows["batch"] == 1) & (rows["height"] == 32)]
    assert first["p50_ms"].tolist() == pytest.approx([first_ms])
    assert (rows["protocol"] == 0).all() and (rows["height"] == rows["width"]).all()


def test_its_ratio_is_pytorchs_time_over_the_columns():
    rows = article.rows("resnet18").set_index(["column", "batch", "height"])
    at = 16, 256
    assert rows.loc[("pytorch_cpu", *at), "ratio"] == 1
    assert rows.loc[("onnx_fix", *at), "ratio"] == pytest.approx(0.7169 / 0.7315), "here ONNX is the slower one"


def test_its_noise_is_what_its_equal_columns_differ_by():
    noise = article.noise("resnet18")
    assert 0.03 < noise < 0.05, "about 4 %, so that two numbers differ by ±8 % and more"
    rows = article.rows("resnet18").pivot(index=["batch", "height"], columns="column", values="p50_ms")
    onnx = np.log(rows.filter(like="onnx"))
    assert noise == pytest.approx(math.sqrt(onnx.var(axis=1, ddof=1).mean()))


@pytest.mark.parametrize("network", models.NETWORKS)
def test_its_files_have_counts_and_sizes(network):
    files = article.files(network).loc["article"]
    assert files["nodes_before"] == files["nodes_after"] > 40
    assert files["size_before"] == pytest.approx(files["size_after"], rel=0.01)
