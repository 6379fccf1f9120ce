"""A corpus's identity is all that decides its pixels and nothing else; a specification follows
from seed and index."""

from collections import Counter
from typing import Any

import pytest

from busray.config import Config
from busray.config_file import validate
from busray.corpus.recipe import corpus_identity, longest_prompts, make_recipe, quotas
from busray.identity import fingerprint
from busray.records import DataSet, Shard, SourceImage

BASE = {"repository": "tiny", "revision": None, "files": {"unet/config.json": "a" * 64}}


def config(**changes: Any) -> Config:
    classes = {
        "benign": {"images": 10, "prompts": ["{token} one", "{token} two, {birads}"], "quotas": {}},
        "malignant": {"images": 10},
    }
    tree: dict[str, Any] = {"dataset": {"path": "data"}, "classes": classes, "seed": 7}
    return validate({**tree, **changes})


@pytest.fixture
def dataset() -> DataSet:
    def image(i: int, name: str, width: int, birads: str) -> SourceImage:
        return SourceImage(f"{name}/{i}.png", name, width, 100, "L", f"{i:064d}", (), None, {"birads": birads})

    train = tuple(image(i, "benign", 100 + 50 * (i % 2), "23"[i % 4 == 0]) for i in range(8))
    train += tuple(image(i, "malignant", 80, "5") for i in range(4))
    return DataSet("h" * 64, 128, "letterbox", 42, train, (), (), ())


def identity(changed: Config, **changes: Any) -> str:
    given = {"base": BASE, "adapter_sha256": "b" * 64, "dataset_hash": "h" * 64, "refine": True, **changes}
    return fingerprint(corpus_identity(changed, **given))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"sampling": {"steps": 9}},
        {"sampling": {"guidance_scale": 3}},
        {"sampling": {"guidance_interval": [0.3, 5]}},
        {"sampling": {"deep_every": 2}},
        {"sampling": {"negative_prompt": "blurred"}},
        {"sampling": {"lora_scale": 0.5}},
        {"refine": {"strength": 0.4}},
        {"refine": {"handover": "latent"}},
        {"corpus": {"format": "png"}},
        {"base": {"dtype": "bfloat16"}},
    ],
)
def test_what_decides_pixels_is_part_of_the_identity(changes: dict[str, Any]) -> None:
    assert identity(config(**changes)) != identity(config())


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "elsewhere"},
        {"name": "other"},
        {"sampling": {"batch_size": 3, "compile": True}},
        {"corpus": {"shard_size": 5, "shard_seconds": 20}},
        {"cluster": {"actors": 4}},
        {"evaluate": {"reference": "train"}},
    ],
)
def test_how_many_and_where_are_not(changes: dict[str, Any]) -> None:
    assert identity(config(**changes)) == identity(config())


def test_a_preset_is_what_it_sets() -> None:
    set_by_hand = config(sampling={"steps": 20, "deep_every": 2}, refine={"steps": 27})
    assert identity(config(sampling={"preset": "fast"})) == identity(set_by_hand) != identity(config())


def test_base_adapters_and_data_set_count_by_their_digests() -> None:
    moved = {**BASE, "repository": "/another/place"}
    assert identity(config(), base=moved) == identity(config())
    assert identity(config(), base={**BASE, "files": {"unet/config.json": "c" * 64}}) != identity(config())
    assert identity(config(), adapter_sha256="c" * 64) != identity(config())
    assert identity(config(), dataset_hash="c" * 64) != identity(config())
    assert identity(config(), refine=False) != identity(config())


def test_a_specification_follows_from_class_and_index_and_not_from_its_shard(dataset: DataSet) -> None:
    recipe = make_recipe(config(), dataset, "f" * 64, use_tokens=True)
    assert recipe.specs(Shard("benign", 0, 6))[3:] == recipe.specs(Shard("benign", 3, 3))
    seeds = {s.seed_txt2img for name in ("benign", "malignant") for s in recipe.specs(Shard(name, 0, 50))}
    assert len(seeds) == 100


def test_arms_share_seeds_frames_and_quotas_and_differ_in_their_words(dataset: DataSet) -> None:
    with_tokens = make_recipe(config(), dataset, "f" * 64, use_tokens=True).specs(Shard("benign", 0, 6))
    without = make_recipe(config(), dataset, "e" * 64, use_tokens=False).specs(Shard("benign", 0, 6))
    for ours, theirs in zip(with_tokens, without, strict=True):
        assert (ours.seed_txt2img, ours.seed_img2img, ours.box) == (
            theirs.seed_txt2img,
            theirs.seed_img2img,
            theirs.box,
        )
        assert ours.prompt.replace("<benign>", "ultrasound") == theirs.prompt
        assert ours.image_id != theirs.image_id


def test_a_token_typed_out_in_a_prompt_gives_way_to_its_stand_in_too(dataset: DataSet) -> None:
    def asking(prompt: str) -> Config:
        return config(classes={"benign": {"token": "<us>", "prompts": [prompt], "initializer": "dark"}})

    typed, curly = asking("scan, <us>"), asking("scan, {token}")
    said = [make_recipe(typed, dataset, "f" * 64, use_tokens=use).spec("benign", 0).prompt for use in (True, False)]
    assert said == ["scan, <us>", "scan, dark"]
    assert identity(typed) == identity(curly)


def test_the_longest_prompt_of_a_template_has_the_longest_value_of_each_column(dataset: DataSet) -> None:
    columns = {"side": {"left": 0.5, "right": 0.5}, "birads": {"3": 0.5, "4a, later 5": 0.5}}
    prompts = ["{token}, {side}, {birads}", "{token} {side}"]
    asked = config(classes={"benign": {"prompts": prompts, "quotas": columns, "initializer": "dark"}})
    found = longest_prompts(asked, quotas(asked, dataset), use_tokens=False, length=len)
    assert found == {"benign": ["dark, right, 4a, later 5", "dark right"]}
    drawn = make_recipe(asked, dataset, "f" * 64, use_tokens=False).specs(Shard("benign", 0, 200))
    assert max(len(spec.prompt) for spec in drawn) == len(found["benign"][0])


def test_templates_take_turns_and_columns_follow_the_training_splits_shares(dataset: DataSet) -> None:
    specs = make_recipe(config(), dataset, "f" * 64, use_tokens=True).specs(Shard("benign", 0, 400))
    assert {s.prompt for s in specs[0::2]} == {"<benign> one"}
    threes = sum(s.columns["birads"] == "3" for s in specs) / len(specs)
    assert threes == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("seed", [7, 8, 1000])
@pytest.mark.parametrize("columns", [("device", "side"), ("device", "shape", "side")])
def test_columns_do_not_go_together(dataset: DataSet, columns: tuple[str, ...], seed: int) -> None:
    words = "{token} " + " ".join(f"{{{column}}}" for column in columns)
    quotas = {column: {"one": 0.5, "two": 0.5} for column in reversed(columns)}
    both = config(seed=seed, classes={"normal": {"images": 10, "prompts": [words], "quotas": quotas}})
    specs = make_recipe(both, dataset, "f" * 64, use_tokens=True).specs(Shard("normal", 0, 1000))
    joint = Counter(spec.prompt for spec in specs)
    assert len(joint) == 2 ** len(columns)
    assert all(n == pytest.approx(1000 / len(joint), abs=12) for n in joint.values()), joint
    for column in columns:
        assert sum(spec.columns[column] == "one" for spec in specs) == pytest.approx(500, abs=5)


def test_frames_are_drawn_from_all_classes_together(dataset: DataSet) -> None:
    recipe = make_recipe(config(), dataset, "f" * 64, use_tokens=True)
    boxes = {name: {s.box for s in recipe.specs(Shard(name, 0, 200))} for name in ("benign", "malignant")}
    assert boxes["benign"] == boxes["malignant"] and len(boxes["benign"]) == 3
