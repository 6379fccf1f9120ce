"""DINOv2's features are torch-fidelity's, given the same network; other files are refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from busray.layout import features_key
from busray.records import UserError, distance_names
from busray.vision import dinov2
from busray.vision.dinov2 import BLOCK, OUTER, DinoFeatures, DinoWeights, find_dino_weights, position_embedding

WIDTH, DEPTH = 384, 12


def random_state(seed: int = 0, side: int = 16) -> dict[str, torch.Tensor]:
    """ViT-S/14 in its authors' layout with random weights, its positions trained on side x side
    patches."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        **{"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + side**2, WIDTH), "mask_token": (1, WIDTH)},
        **{"patch_embed.proj.weight": (WIDTH, 3, 14, 14), "patch_embed.proj.bias": (WIDTH,)},
        **{"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)},
    }
    part = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH)}
    part["mlp.fc2"] = (WIDTH, 4 * WIDTH)
    for i in range(DEPTH):
        for name in BLOCK:
            layer, kind = name.rsplit(".", 1)
            matrix = part.get(layer, (WIDTH,))
            shapes[f"blocks.{i}.{name}"] = matrix if kind == "weight" else matrix[:1]
    state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in state.items():
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            tensor += 1
    return state


def transformers_model(state: dict[str, torch.Tensor]) -> Dinov2Model:
    """The same weights in transformers' independent implementation."""
    model = Dinov2Model(
        Dinov2Config(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=6, image_size=224, patch_size=14)
    ).eval()
    names = {
        **{"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"},
        **{"embeddings.mask_token": "mask_token", "layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias"},
        **{f"embeddings.patch_embeddings.projection.{k}": f"patch_embed.proj.{k}" for k in ("weight", "bias")},
    }
    theirs: dict[str, torch.Tensor] = {name: state[ours] for name, ours in names.items()}
    for name in model.state_dict():
        if not name.startswith("encoder.layer."):
            continue
        _, _, i, *rest = name.split(".")
        tail, at = ".".join(rest), f"blocks.{i}"
        projection = next((k for k, p in enumerate(("q_proj", "k_proj", "v_proj")) if p in tail), None)
        if projection is not None:
            theirs[name] = state[f"{at}.attn.qkv.{rest[-1]}"].chunk(3)[projection]
        elif "o_proj" in tail:
            theirs[name] = state[f"{at}.attn.proj.{rest[-1]}"]
        else:
            theirs[name] = state[f"{at}.{tail.replace('layer_scale', 'ls').replace('lambda1', 'gamma')}"]
    model.load_state_dict(theirs)
    return model


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state()


@pytest.fixture
def weights(state: dict[str, torch.Tensor], tmp_path: Path) -> DinoWeights:
    save_file(state, tmp_path / "w.safetensors")
    return find_dino_weights(str(tmp_path / "w.safetensors"))


def test_features_are_those_of_torch_fidelity_on_transformers_network(
    state: dict[str, torch.Tensor], weights: DinoWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    network = transformers_model(state)

    class Hub(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return network(x).pooler_output

    monkeypatch.setattr(torch.hub, "load", lambda *_: Hub())
    theirs = FeatureExtractorDinoV2("dinov2-vit-s-14", ["dinov2"])
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96), np.uint8)
    with torch.inference_mode():
        (wanted,) = theirs(torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1))
    extractor = DinoFeatures(weights)
    features = extractor(images)
    assert weights.name.startswith("dinov2-vit-s-14-") and features.shape == (2, 384) and features.dtype == np.float32
    np.testing.assert_allclose(features, wanted.numpy(), atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 1e-2  # else the weights are too small to show anything
    np.testing.assert_allclose(extractor(np.repeat(images[..., None], 3, 3)), features, atol=1e-4)


def test_positions_are_sampled_bicubically_where_the_authors_code_samples_them() -> None:
    trained = random_state(side=37)["pos_embed"][:, :, :5]
    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5

    def cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
        x = abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    taps = np.floor(places).astype(int)[:, None] + np.arange(-1, 3)
    rows = np.zeros((16, 37))
    for i, place in enumerate(places):
        np.add.at(rows[i], taps[i].clip(0, 36), cubic(place - taps[i]))
    grid = trained[0, 1:].numpy().reshape(37, 37, 5)
    wanted = np.einsum("ai,bj,ijd->abd", rows, rows, grid).reshape(256, 5)
    found = position_embedding(trained)
    np.testing.assert_allclose(found[0, 1:].numpy(), wanted, atol=1e-5)
    torch.testing.assert_close(found[:, 0], trained[:, 0])


def test_without_weights_the_error_names_the_way_to_them() -> None:
    for path in (None, "/nowhere/w.safetensors"):
        with pytest.raises(UserError, match=r"evaluate\.dinov2: no ") as caught:
            find_dino_weights(path)
        for part in (dinov2.ADDRESS, "save_file", "evaluate.extractors", path or "no path"):
            assert part in str(caught.value)


def test_the_authors_file_is_used_once_converted_as_the_error_says(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state, "dinov2_vitl14_pretrain.pth")
    with pytest.raises(UserError, match="is no safetensors file"):
        find_dino_weights("dinov2_vitl14_pretrain.pth")
    save_file(torch.load("dinov2_vitl14_pretrain.pth", weights_only=True), "dinov2_vitl14.safetensors")
    assert find_dino_weights("dinov2_vitl14.safetensors").name.startswith("dinov2-vit-s-14-")  # by what is in it


@pytest.mark.parametrize("change", ["registers", "a tensor missing", "a block missing", "another layout"])
def test_other_networks_are_refused(state: dict[str, torch.Tensor], tmp_path: Path, change: str) -> None:
    changed = {
        "registers": state | {"register_tokens": torch.zeros(1, 4, WIDTH)},
        "a tensor missing": {name: tensor for name, tensor in state.items() if name != OUTER[0]},
        "a block missing": {name: tensor for name, tensor in state.items() if not name.startswith("blocks.11.")},
        "another layout": {f"model.{name}": tensor for name, tensor in state.items()},
    }[change]
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"evaluate\.dinov2: .*w\.safetensors is not DINOv2"):
        find_dino_weights(str(tmp_path / "w.safetensors"))


def test_a_file_without_the_mask_token_is_as_good(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({name: tensor for name, tensor in state.items() if name != "mask_token"}, tmp_path / "w.safetensors")
    assert find_dino_weights(str(tmp_path / "w.safetensors")).name.startswith("dinov2-vit-s-14-")


def test_other_weights_of_the_same_shapes_are_another_extractor_with_features_of_its_own(
    state: dict[str, torch.Tensor], weights: DinoWeights, tmp_path: Path
) -> None:
    save_file(random_state(seed=1), tmp_path / "other.safetensors")
    save_file(state, tmp_path / "again.safetensors")
    other, again = (find_dino_weights(str(tmp_path / f"{name}.safetensors")) for name in ("other", "again"))
    assert weights.name == f"dinov2-vit-s-14-{hashlib.sha256(weights.path.read_bytes()).hexdigest()[:16]}"
    assert features_key("0" * 64, "image", other.name) != features_key("0" * 64, "image", weights.name)
    assert again.name == weights.name
    assert distance_names(other.name) == distance_names(weights.name) == ("fd-dinov2", "kd-dinov2")


def test_a_file_that_has_changed_since_it_was_named_is_not_computed_with(weights: DinoWeights) -> None:
    save_file(random_state(seed=1), weights.path)
    with pytest.raises(UserError, match=r"evaluate\.dinov2: .*w\.safetensors is not the file"):
        DinoFeatures(weights)
