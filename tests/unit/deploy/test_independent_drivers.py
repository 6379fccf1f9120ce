"""The files for independent drivers are what their programs accept, and busray what they run."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.validate import ParamValidator

from busray.command_line import build_parser, split_settings
from busray.config import Config
from busray.config_file import load_config
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
ARRAY = 16


def sbatch() -> str:
    return (DEPLOY / "slurm.sbatch").read_text()


def skypilot(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / f"skypilot-{name}.yaml").read_text())


def definition() -> dict[str, Any]:
    return json.loads((DEPLOY / "aws-batch-definition.json").read_text())


def shell_commands(script: str) -> list[list[str]]:
    """The words of each line that runs busray."""
    lines = script.replace("\\\n", " ").splitlines()
    found = [shlex.split(line.strip().removeprefix("exec ")) for line in lines if not line.startswith("#")]
    return [words for words in found if words[:1] == ["busray"] and len(words) > 2]


def commands() -> dict[str, list[str]]:
    (slurm,) = shell_commands(sbatch().replace('"$STAGE"', "generate"))
    (sky,) = shell_commands(skypilot("job")["run"])
    return {"slurm": slurm, "skypilot": sky, "batch": definition()["containerProperties"]["command"]}


def parsed(words: list[str]) -> tuple[str, Config]:
    """(command, its settings), as busray reads them."""
    own, flags = split_settings(words[1:], build_parser())
    options = build_parser().parse_args(own)
    return options.command, load_config(ROOT / options.config, flags)


@pytest.mark.parametrize("where", ["slurm", "skypilot", "batch"])
def test_busray_accepts_the_command_and_draws_with_the_gpu_that_the_machine_has(where: str) -> None:
    command, config = parsed(commands()[where])
    assert command == "generate"
    assert config.cluster.gpus_per_actor == 1 and config.cluster.cpus_per_actor == 8
    assert config.cluster.address is None, "each driver has a Ray of its own"
    assert config.output and config.dataset.path


def test_all_three_draw_the_same_corpus() -> None:
    first, *others = [parsed(words)[1] for words in commands().values()]
    for other in others:
        assert other.classes == first.classes and other.sampling == first.sampling and other.seed == first.seed


def test_a_flag_that_busray_does_not_know_would_be_seen() -> None:
    words = [*commands()["batch"], "--cluster.gpu_per_actor=1"]
    with pytest.raises(Exception, match="gpu_per_actor"):
        parsed(words)


def test_no_file_lets_ray_send_usage_statistics() -> None:
    assert "export RAY_USAGE_STATS_ENABLED=0" in sbatch()
    assert skypilot("job")["envs"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in definition()["containerProperties"]["environment"]


# ---- Slurm ----


def test_bash_reads_the_slurm_script() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sbatch")], check=True)
    assert sbatch().startswith("#!/bin/bash\n")


def test_slurm_gets_an_array_of_gpu_tasks_that_are_requeued() -> None:
    """Slurm reads the directives up to the first command, and no line after it."""
    before_commands = re.split(r"^(?!#)", sbatch(), maxsplit=1, flags=re.MULTILINE)[0]
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", before_commands, re.MULTILINE))
    assert sbatch().count("\n#SBATCH") == len(options)
    assert options["array"] == f"0-{ARRAY - 1}"
    assert options["gpus-per-task"] == "1" and options["cpus-per-task"] == "8"
    assert "requeue" in options and options["ntasks"] == options["nodes"] == "1"


def test_the_slurm_script_runs_the_stage_that_it_is_given(tmp_path: Path) -> None:
    fake = tmp_path / "busray"
    fake.write_text('#!/bin/bash\necho "$RAY_USAGE_STATS_ENABLED $*"\n')
    fake.chmod(0o755)
    for environment, stage in (({}, "generate"), ({"STAGE": "finetune"}, "finetune")):
        told = subprocess.run(
            ["bash", str(DEPLOY / "slurm.sbatch")],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert told.startswith(f"0 {stage} configs/busi-sd15.yaml --dataset.path=")


# ---- SkyPilot ----


def test_the_pool_has_machines_and_no_command_and_the_job_a_command_and_no_files() -> None:
    """What SkyPilot's pages on pools ask for."""
    pool, job = skypilot("pool"), skypilot("job")
    assert pool["pool"] == {"workers": ARRAY} and "run" not in pool
    assert job.keys().isdisjoint({"setup", "workdir", "file_mounts", "pool"})
    for field in ("accelerators", "cpus", "use_spot", "image_id"):
        assert pool["resources"][field] == job["resources"][field]
    assert pool["resources"]["image_id"].startswith("docker:REGISTRY/busray:")
    subprocess.run(["bash", "-n"], input=job["run"], text=True, check=True)


# ---- AWS Batch ----


def problems(operation: str, parameters: dict[str, Any]) -> str:
    """What AWS's own description of the operation finds wrong."""
    client = boto3.client("batch", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    shape = client.meta.service_model.operation_model(operation).input_shape
    return ParamValidator().validate(parameters, shape).generate_report()


def test_aws_batch_accepts_the_definition_and_the_array_job() -> None:
    job = json.loads((DEPLOY / "aws-batch-job.json").read_text())
    assert problems("RegisterJobDefinition", definition()) == ""
    assert problems("SubmitJob", job) == ""
    assert problems("SubmitJob", {**job, "arrayProperties": {"sizes": 16}}) != ""
    assert job["jobDefinition"] == definition()["jobDefinitionName"]
    assert job["arrayProperties"] == {"size": ARRAY}


def test_aws_batch_tries_again_after_a_lost_machine_and_not_after_a_mistake_in_the_settings() -> None:
    rules = definition()["retryStrategy"]["evaluateOnExit"]
    assert rules[0] == {"onExitCode": "2", "action": "EXIT"}
    assert {"onStatusReason": "Host EC2*", "action": "RETRY"} in rules
    assert rules[-1] == {"onExitCode": "*", "action": "RETRY"}
