"""A safetensors file is read without torch; each way in which it is not whole is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from busray.identity import sha256_bytes
from busray.model.weights import NoWeights, read_header, scan

WHOLE = save({"a": np.ones((3, 4), np.float32), "b": np.arange(5, dtype=np.float16)})


def problem(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(NoWeights) as caught:
        read_header(path)
    return str(caught.value)


def test_each_kind_of_file_that_is_no_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n"
    assert "Git-LFS pointer" in problem(path, pointer) and "git lfs pull" in problem(path, pointer)
    assert f"cut short, {len(WHOLE) - 10} of {len(WHOLE)} bytes" in problem(path, WHOLE[:-10])
    assert "cut short in its header" in problem(path, WHOLE[:20])
    assert "empty" in problem(path, b"")
    assert "a web page" in problem(path, b"<!DOCTYPE html><html>")
    assert "a pickle" in problem(path, b"\x80\x04 pickle")
    assert "a pickle" in problem(path, b"PK\x03\x04" + b"0" * 60)
    assert "3 bytes follow" in problem(path, WHOLE + b"abc")
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    assert "does not fit itself at a" in problem(path, len(header).to_bytes(8, "little") + header + bytes(8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_reading_gives_the_digest_and_the_tensors_that_are_not_finite(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    bad = torch.linspace(-6e4, 6e4, 300_001, dtype=dtype)
    bad[-1] = value
    data = save_torch({"bad": bad, "good": torch.full((7, 2), torch.finfo(dtype).max, dtype=dtype)})
    (tmp_path / "x").write_bytes(data)
    found = scan(tmp_path / "x", read_header(tmp_path / "x"))
    assert found.sha256 == sha256_bytes(data)
    assert found.not_finite == ("bad",)
    assert not found.blank


def test_a_file_that_ends_in_zeros_is_an_unfinished_download(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(WHOLE)
    assert not scan(tmp_path / "x", read_header(tmp_path / "x")).blank
    size = read_header(tmp_path / "x").size
    (tmp_path / "x").write_bytes(WHOLE[:size] + bytes(len(WHOLE) - size))
    assert scan(tmp_path / "x", read_header(tmp_path / "x")).blank
