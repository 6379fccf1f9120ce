"""The card: a header that Hugging Face reads, the seven Cs, figures with n, hashes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from busray.cli import main
from busray.config_file import validate
from busray.corpus.manifest import publish_manifest
from busray.identity import fingerprint, fingerprint_rows
from busray.layout import CARD, REPORT_JSON, RUN, commit_key, segment_key
from busray.records import Commit, Execution, Segment, Shard, to_json
from busray.report.card import RESTRICTIONS, SIZES, data_card
from busray.storage import Store

SEVEN = ("Congruence", "Coverage", "Constraint", "Completeness", "Compliance", "Comprehension", "Consistency")
FILES = {"configs": [{"config_name": "default", "data_files": "data/*.parquet"}]}
HASH = {name: name[0] * 64 for name in ("fingerprint", "dataset", "adapters", "lora", "base")}


def config(**changes: Any):
    return validate(
        {
            "name": "trial",
            "dataset": {"path": "/home/somebody/scans"},
            "classes": {"benign": {"images": 4}, "malignant": {"images": 2}},
            **changes,
        }
    )


def figure(metric: str, arm: str, value: float, **changes: Any) -> dict[str, Any]:
    return {
        "metric": metric, "value": value, "interval": None, "n": 31, "n_reference": 17, "reference": "test",
        "protocol": "real-against-real" if arm == "real" else "synthetic-only", "extractor": "inception-v3-2015",
        "class": "all", "arm": arm, "frame": "letterbox", "size": 64, **changes,
    }  # fmt: skip


FIGURES = [
    figure("fid", "lora+ti+refine", 123.4),
    figure("kid", "lora+ti+refine", 0.25, interval=[0.2, 0.3]),
    figure("fid", "base", 777.7),
    figure("fid", "lora+ti+refine", 11.1, protocol="paper-mixture"),
    figure("fid_floor", "real", 62.7),
    figure("recall", "lora+ti+refine", 0.4),
    figure("fd-texture", "lora+ti+refine", 5.5, extractor="texture-1"),
    figure("lesion_found", "lora+ti+refine", 0.015625),
]


def model(metric: str, arm: str, protocol: str, value: float) -> dict[str, Any]:
    return figure(metric, arm, value, protocol=protocol, extractor="cnn", interval=[value - 0.1, value + 0.1])


def audit(copies: int = 0) -> dict[str, Any]:
    """As busray.cluster.audit writes it, of the six images of shards()."""
    said = f"Copies: {copies} of 6 images copy one of 17 training images ({copies} copied)."
    found = figure("copies", "lora+ti+refine", copies / 6, protocol="copy-audit", n=6, extractor="aligned-1")
    return {"sentences": [said, "Found of planted copies: blurred 100%."], "figures": [found], "closest": {}}


def report(repository: str = "tiny", revision: str | None = None, figures: Any = FIGURES) -> dict[str, Any]:
    return {
        "run": {
            "fingerprint": HASH["fingerprint"],
            "busray": "0.1.0",
            "output": "/home/somebody/runs/trial",
            "command": "busray run /home/somebody/trial.yaml",
            "base": {"repository": repository, "revision": revision, "files": {"unet/x.safetensors": HASH["base"]}},
            "adapters": {
                "method": "lora+ti", "step": 600, "sha256": HASH["adapters"],
                "files": {"lora.safetensors": HASH["lora"]},
            },
            "execution": {"libraries": {"torch": "2.14.1"}},
            "settings": config().model_dump(mode="json"),
        },
        "dataset": {
            "hash": HASH["dataset"],
            "counts": {split: {"benign": 9, "malignant": 8} for split in ("train", "val", "test")},
            "left_out": [["benign/a.png", "label conflict"]],
        },
        "corpus": {"committed": 6},
        "figures": list(figures),
        "audit": None,
        "study": None,
    }  # fmt: skip


def shards(benign: int = 4, malignant: int = 2, rejects: int = 0) -> list[dict[str, Any]]:
    return [
        {"class": "benign", "rows": benign - rejects, "rejects": rejects, "count": benign},
        {"class": "malignant", "rows": malignant, "rejects": 0, "count": malignant},
    ]


def card(**changes: Any) -> str:
    given = {"report": report(), "config": config(), "shards": shards(), "digest": "m" * 64, "files": FILES, **changes}
    return data_card(**given)


def header(text: str) -> dict[str, Any]:
    start, front, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front)


def section(text: str, name: str) -> str:
    return text.split(f"## {name}\n", 1)[1].split("\n## ", 1)[0]


def test_the_header_reads_back_and_names_what_is_synthetic_and_not_clinical() -> None:
    front = header(card())
    assert front["license"] == "other" and front["license_name"] == "undeclared"
    assert front["size_categories"] == ["n<1K"]
    assert {"synthetic", "not-for-clinical-use"} <= set(front["tags"])
    assert front["task_categories"] == ["image-classification", "text-to-image"]
    assert front["configs"] == FILES["configs"]


def test_a_title_that_looks_like_yaml_is_quoted() -> None:
    assert header(card(config=config(name="a: [b] # c")))["pretty_name"].startswith("a: [b] # c: synthetic")


def test_the_size_category_follows_the_images_that_are_there() -> None:
    for limit, name in SIZES:
        assert header(card(shards=shards(limit - 3, 2)))["size_categories"] == [name]
        assert header(card(shards=shards(limit - 2, 2)))["size_categories"] != [name]


def test_what_is_not_stated_reads_undeclared_and_what_is_stated_is_printed() -> None:
    assert card().count("undeclared") == 5  # in the header once, then licence, source, ethics, contact
    stated = {"license": "cc-by-4.0", "source": "A et al. 2020", "ethics": "IRB 12", "contact": "a@b.org"}
    text = card(config=config(card=stated))
    assert "undeclared" not in text
    assert header(text)["license"] == "cc-by-4.0"
    for line in ("- Licence: cc-by-4.0", "A et al. 2020", "- Ethics: IRB 12", "- Contact: a@b.org"):
        assert line in text
    own = header(card(config=config(card={"license": "Our Own Terms"})))
    assert (own["license"], own["license_name"]) == ("other", "Our Own Terms")


def test_the_card_says_what_is_known_of_patients() -> None:
    assert "- Patients: How many patients they show is not recorded." in card()
    given = report()
    given["dataset"]["patients"] = {"patients": 6, "crossing": 0}
    said = "- Patients: The images show 6 known patients. None of them is in more than one split."
    assert said in card(report=given)
    given["dataset"]["patients"] = {"patients": 0, "crossing": 0}
    assert "- Patients: Nobody said which images show one patient." in card(report=given)


def test_the_seven_cs_are_there_in_their_order() -> None:
    text = card()
    places = [text.index(f"\n## {name}\n") for name in SEVEN]
    assert places == sorted(places)
    assert "10.1038/s44172-025-00450-1" in text
    assert "Not for clinical use" in text


def test_figures_carry_n_reference_protocol_and_extractor() -> None:
    lines = section(card(), "Congruence").splitlines()
    assert (
        "| kid | all | lora+ti+refine | 0.25 | 0.2 to 0.3 | 31 | 17 test | synthetic-only | inception-v3-2015 |"
        in lines
    )
    assert any(line.startswith("| fid_floor | all | real | 62.7 | – |") for line in lines)
    assert any(line.startswith("| fd-texture |") and line.endswith("| texture-1 |") for line in lines)
    assert "| recall | all |" in section(card(), "Coverage")
    assert "0.015625" in section(card(), "Further evidence")


def test_other_arms_and_the_mixture_are_not_this_corpus() -> None:
    assert "777.7" not in card() and "11.1" not in card()


def test_without_figures_of_this_corpus_nothing_counts_as_measured() -> None:
    text = card(report=report(figures=[FIGURES[2], FIGURES[4]]))
    assert "62.7" not in text
    for name in ("Congruence", "Coverage"):
        assert section(text, name).rstrip().endswith("Not measured.")
    assert section(text, "Further evidence").count("Not measured.") == 2


def test_what_to_know_first_stands_above_the_counts() -> None:
    warned = [{"text": "Do not train on the 'benign' images.", "advice": "Try prompts."}]
    text = card(report={**report(), "warnings": warned})
    assert text.index("- Do not train on the 'benign' images. Try prompts.\n") < text.index("## Congruence")


def test_copies_that_the_audit_found_stand_in_the_card() -> None:
    told = section(card(report={**report(), "audit": audit(2)}), "Compliance")
    assert "- Copies: 2 of 6 images copy one of 17 training images (2 copied).\n" in told
    assert "- Found of planted copies: blurred 100%.\n" in told
    assert "Not audited" not in told and "earlier state" not in told


def test_an_audit_of_fewer_images_than_the_corpus_has_now_says_so() -> None:
    told = section(card(report={**report(), "audit": audit()}, shards=shards(40, 2)), "Compliance")
    assert "- The audit is of an earlier state of this corpus (6 of 42 images)" in told


def test_what_was_neither_audited_nor_studied_is_said_not_to_be() -> None:
    assert "Not audited" in section(card(), "Compliance")
    assert "Not studied" in section(card(), "Further evidence")


def test_the_studys_sentences_stand_in_the_card() -> None:
    study = {"sentences": ["Primary comparison, declared beforehand: x.", "Single split: y."], "figures": []}
    told = section(card(report={**report(), "study": study}), "Further evidence")
    assert "- Primary comparison, declared beforehand: x.\n- Single split: y.\n" in told
    assert "Not studied" not in told


def test_what_the_judge_the_gate_and_the_segmenter_found_stands_in_the_card() -> None:
    figures = [
        *(figure("fid", arm, 1.5) for arm in ("lora+ti+refine+gate", "lora+ti+refine")),
        model("class_consistency", "lora+ti+refine", "first-draw", 0.3125),
        model("class_consistency", "base", "first-draw", 0.777),
        model("class_consistency", "lora+ti+refine+gate", "after-gate", 0.4375),
        model("judge_accuracy", "real", "single-split", 0.5625),
        figure("seen_as_benign", "real", 0.123, protocol="single-split"),
        model("lesion_dice", "real", "single-split", 0.6875),
        figure("lesion_area_distance_floor", "real val", 0.0625, protocol="real-against-real"),
    ]
    gate = {"format": "parquet", "gate": {"architecture": "efficientnet-lite0"}}
    told = section(card(report=report(figures=figures), config=config(corpus=gate)), "Further evidence")
    for row in (
        "| class_consistency | all | lora+ti+refine | 0.3125 | 0.2125 to 0.4125 | 31 | 17 test | first-draw |",
        "| class_consistency | all | lora+ti+refine+gate | 0.4375 | 0.3375 to 0.5375 | 31 | 17 test | after-gate |",
        "| judge_accuracy | all | real | 0.5625 |",
        "| lesion_dice | all | real | 0.6875 |",
        "| lesion_area_distance_floor | all | real val | 0.0625 |",
    ):
        assert row in told
    assert "0.777" not in told and "seen_as" not in told


def test_a_corpus_that_has_grown_since_it_was_measured_says_so() -> None:
    assert "when this was measured" not in card()
    assert "The corpus had 6 images when this was measured" in card(shards=shards(40, 2))


def test_quarantined_images_are_counted() -> None:
    assert "2 of 6 planned images were quarantined" in " ".join(card(shards=shards(rejects=2)).split())


def test_every_hash_is_there() -> None:
    hashes = section(card(), "Hashes")
    for value in (*HASH.values(), "m" * 64):
        assert value in hashes


def test_openrail_ms_restrictions_are_carried_on_for_stable_diffusion_alone() -> None:
    sd15 = card(report=report("stable-diffusion-v1-5/stable-diffusion-v1-5", "a" * 40))
    items = [line for line in RESTRICTIONS.splitlines() if line.startswith("- ")]
    assert len(items) == 11 and all(f"{item}\n" in sd15 for item in items)
    assert "interpret medical results" in sd15 and "a" * 40 in sd15
    assert not any(item in card() for item in items)
    assert "Apache License 2.0" in card()


def test_a_base_of_unknown_licence_is_said_to_be_one_and_its_folder_is_not_told() -> None:
    text = card(report=report("/home/somebody/models/my-base"))
    assert "licence of the base `my-base` is undeclared" in text
    assert "OpenRAIL-M" in text
    assert "/home" not in text and "somebody" not in text


def test_no_path_of_a_machine_is_in_it() -> None:
    assert "somebody" not in card()


# ---- the command


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A run with its manifest and report, and no image that is read."""
    store = Store(str(tmp_path / "run"))
    segments = [Segment("benign", 0, 4, 4), Segment("malignant", 0, 2, 2)]
    for i, segment in enumerate(segments):
        store.put_once(segment_key(i), to_json(segment))
    for shard in (Shard("benign", 0, 4), Shard("malignant", 0, 2)):
        key = f"data/{shard.class_name}/{shard.name}-{'d' * 16}.parquet"
        execution = Execution("cpu", "float32", 4, 1, {})
        one = Commit(shard.class_name, 0, shard.count, key, "d" * 64, 100, shard.count, (), execution, 1.0)
        store.put_once(commit_key(shard), to_json(one))
    publish_manifest(store, segments)
    store.put_once(RUN, to_json({"fingerprint": fingerprint({}), "identity": {}}))
    store.replace(REPORT_JSON, to_json(report()))
    return store


def test_the_command_writes_the_card_into_the_run_and_says_where(run: Store, capsys: pytest.CaptureFixture) -> None:
    assert main(["card", run.url, "--card.license=cc0-1.0"]) == 0
    out = capsys.readouterr().out
    assert f"card: {run.url}/{CARD}" in out
    assert "undeclared: card.source, card.ethics, card.contact" in out
    text = run.read(CARD).decode()
    assert header(text)["license"] == "cc0-1.0"
    rows = [json.loads(run.read(commit_key(s))) for s in (Shard("benign", 0, 4), Shard("malignant", 0, 2))]
    published = [
        {key: row[key] for key in ("first", "count", "rows", "object", "digest", "bytes")}
        | {"class": row["class_name"], "rejects": len(row["rejects"])}
        for row in rows
    ]
    assert fingerprint_rows(published) in section(text, "Hashes")


def test_the_command_writes_the_same_card_again_over_the_old_one(run: Store) -> None:
    main(["card", run.url])
    first = run.read(CARD)
    assert main(["card", run.url]) == 0
    assert run.read(CARD) == first


@pytest.mark.parametrize("flag", ["--sampling.steps=3", "--card.licence=x"])
def test_other_settings_than_the_cards_are_refused(run: Store, flag: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["card", run.url, flag]) == 2
    assert flag.removeprefix("--").split("=")[0] in capsys.readouterr().err
    assert not run.exists(CARD)


def test_a_run_without_a_report_is_sent_to_finish(run: Store, capsys: pytest.CaptureFixture) -> None:
    run.delete(REPORT_JSON)
    assert main(["card", run.url]) == 2
    assert "report.json" in capsys.readouterr().err
