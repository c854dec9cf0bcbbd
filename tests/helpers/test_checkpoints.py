"""helpers/checkpoints.py: what people bring comes down to the state dict; what is none is named for what it is."""

import argparse
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers import models

PLAIN = nn.Linear(2, 3).state_dict()
EMA = {name: tensor + 1 for name, tensor in PLAIN.items()}
AVERAGED = {"n_averaged": torch.tensor(5), **{f"module.{name}": tensor for name, tensor in EMA.items()}}


def under(prefix, state=PLAIN):
    return {prefix + name: tensor for name, tensor in state.items()}


# what: (what is saved, what is taken, what is said)
CHECKPOINTS = {
    "plain": (PLAIN, PLAIN, "mine.pth: took 2 tensors. It holds 2 tensors by name.\n"),
    "DataParallel": (under("module."), PLAIN, ", without 'module.'."),
    "compiled": (
        {"model": under("_orig_mod.module."), "optimizer": {"state": {0: PLAIN}}},
        PLAIN,
        "(2 tensors), optimizer.",
    ),
    "Lightning": ({"state_dict": under("model."), "hyper_parameters": {"lr": 1}}, PLAIN, "), hyper_parameters."),
    "net.": ({"net": under("net."), "epoch": 3}, PLAIN, "from net, without 'net.'. It holds net (2 tensors), epoch."),
    "one name without": ({"model.weight": PLAIN["weight"], "bias": PLAIN["bias"]}, None, "took 2 tensors. It"),
    "arguments": ({"args": argparse.Namespace(lr=0.1), "state_dict": PLAIN}, PLAIN, "from state_dict. It"),
    "numbers": ({"acc": np.float64(0.9), "n": np.int64(3), "model_state": PLAIN}, PLAIN, "from model_state. It"),
    "a number among them": (
        PLAIN | {"epoch": 3, "_extra_state": None},
        PLAIN,
        "2 tensors by name, epoch, _extra_state.",
    ),
    "a lone tensor": ({"best": torch.tensor(0.9), "weights": PLAIN}, PLAIN, "took 2 tensors from weights."),
    "averaged beside": (
        {"state_dict": PLAIN, "state_dict_ema": EMA},
        EMA,
        "ema (2 tensors). Another: take='state_dict'.",
    ),
    "averaged alone": ({"state_dict_ema": under("module.", EMA)}, EMA, "from state_dict_ema, without 'module.'"),
    "torch's averages": (
        {"model": PLAIN, "model_ema": AVERAGED},
        EMA,
        "took 2 tensors from model_ema, without 'module.'",
    ),
    "nested": ({"ema": {"decay": torch.tensor(0.9), "shadow": EMA}}, EMA, "from ema.shadow. It"),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_checkpoint_comes_down_to_the_weights_and_says_which(tmp_path, capsys, what):
    saved, wanted, said = CHECKPOINTS[what]
    torch.save(saved, tmp_path / "mine.pth")
    state, wanted = models.load_state(tmp_path / "mine.pth"), saved if wanted is None else wanted
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert said in capsys.readouterr().out


def test_reader_chooses_the_set_and_keeps_names_that_the_network_has(tmp_path, capsys):
    torch.save({"state_dict": PLAIN, "state_dict_ema": EMA}, tmp_path / "both.pth")
    assert torch.equal(models.load_state(tmp_path / "both.pth", take="state_dict")["bias"], PLAIN["bias"])
    network = nn.ModuleDict({"model": nn.Linear(2, 3)})
    torch.save(under("module.", network.state_dict()), tmp_path / "own.pth")
    network.load_state_dict(models.load_state(tmp_path / "own.pth", network=network))
    assert capsys.readouterr().out.endswith("took 2 tensors, without 'module.'. It holds 2 tensors by name.\n")


def test_safetensors_and_files_of_an_old_torch_are_read(tmp_path):
    save_file(under("model."), tmp_path / "new.safetensors")
    torch.save(PLAIN, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert torch.equal(models.load_state(path)["weight"], PLAIN["weight"])


def half(save):
    def make(path):
        save(PLAIN, path)
        path.write_bytes(path.read_bytes()[:-20])

    return make


def save_script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and people still have such files
        torch.jit.script(nn.Linear(2, 3)).save(str(path))


def holds(data):
    return lambda path: path.write_bytes(data)


# what: (maker, what the message must say)
REFUSED = {
    "whole model": (
        lambda p: torch.save(nn.Linear(2, 3), p),
        r"pickled model.*\(torch\.nn\.modules\.linear\.Linear\).*any",
    ),
    "a model beside": (lambda p: torch.save({"state_dict": PLAIN, "net": nn.ReLU()}, p), r"other objects .*ReLU"),
    "TorchScript": (save_script, r"TorchScript, not weights.*model\.state_dict\(\)"),
    "arrays": (lambda p: np.savez(p.open("wb"), a=np.ones(2)), "is NumPy arrays"),
    "another zip": (lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "a"), "zip archive"),
    "another pickle": (holds(pickle.dumps([1])), "pickle of another program"),
    "Keras": (holds(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5, as Keras"),
    "web page": (holds(b"\n<html>please log in</html>"), "web page"),
    "pointer": (holds(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "text": (holds(b"dear customer" * 9), "begins with b'dear cus'"),
    "empty": (holds(b""), r"empty \(0 bytes\)"),
    "half": (half(torch.save), "damaged or cut off"),
    "half safetensors": (half(save_file), "damaged or cut off"),
    "a list": (lambda p: torch.save([1, 2], p), r"no weights; it holds: a list\..*model\.state_dict\(\)"),
    "nothing": (lambda p: torch.save({}, p), "no weights; it holds: nothing"),
    "no tensors": (lambda p: torch.save({"epoch": 3, "history": [1.0]}, p), "it holds: epoch, history"),
    "missing": (lambda p: None, "There is no weight file .*check the name"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_file_without_weights_is_named_for_what_it_is_with_what_to_do(tmp_path, what):
    make, said = REFUSED[what]
    make(tmp_path / "mine.pth")
    with pytest.raises(models.WeightsError, match=rf"mine\.pth.*{said}" if what != "missing" else said) as caught:
        models.load_state(tmp_path / "mine.pth")
    assert "mine.pth" in str(caught.value)


def test_set_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    torch.save({"net": PLAIN, "epoch": 3}, tmp_path / "mine.pth")
    with pytest.raises(models.WeightsError, match=r"no weights under 'ema'; it holds: net \(2 tensors\), epoch"):
        models.load_state(tmp_path / "mine.pth", take="ema")
