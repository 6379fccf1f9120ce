"""The files for a cluster are what their programs accept, and say what docs/how-to/aws.md says."""

import json
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from busray.cluster.pool import RayWorkers
from busray.command_line import build_parser, split_settings
from busray.config import Cluster
from busray.config_file import load_config
from tests.support.paths import ROOT
from tests.support.runs import quiet

RAY = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
RAYS_IMAGE = f"rayproject/ray:{RAY}-py311-gpu"
GUIDE = ROOT / "docs" / "how-to" / "aws.md"
IMAGE = f"REGISTRY/busray:{RAY}"
"""What deploy/Dockerfile builds."""


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((ROOT / "kuberay.yaml").read_text())
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in documents}


def node_configs(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind["node_config"] for name, kind in cluster["available_node_types"].items()}


# ---- cluster.yaml ----


def test_rays_launcher_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_the_head_stays_and_gpu_workers_of_several_types_are_spot_and_start_from_none(cluster: dict[str, Any]) -> None:
    kinds = dict(cluster["available_node_types"])
    head = kinds.pop(cluster["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0 and head["max_workers"] == 0
    with_gpu = [kind for kind in kinds.values() if kind["resources"].get("GPU") == 1]
    assert len({kind["node_config"]["InstanceType"] for kind in with_gpu}) >= 3
    for kind in kinds.values():
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert kind["min_workers"] == 0 < kind["max_workers"] <= cluster["max_workers"]


def test_machines_without_a_gpu_and_no_others_have_the_resource_that_cpu_work_asks_for(
    cluster: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    settings = Cluster(address="10.0.0.7:6379", cpu_nodes=True, gpus_per_actor=1)
    workers = RayWorkers(settings, quiet, lambda: None)
    (asked,) = {name for kind in ("cpu", "core") for name in workers._resources(kind)["resources"]}
    assert "resources" not in workers._resources("model")
    for name, kind in cluster["available_node_types"].items():
        has_gpu = "GPU" in kind["resources"]
        assert (asked in kind["resources"]) == (not has_gpu and name != "head")
    for group in manifests["RayJob/busray"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        # KubeRay puts the text on the command line of `ray start`, so it is JSON in a JSON string.
        custom = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        assert (asked in custom) == (not has_gpu)
    assert "--cluster.cpu_nodes=true" in manifests["RayJob/busray"]["spec"]["entrypoint"]


def test_a_ray_of_our_own_is_asked_for_no_cpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    workers = RayWorkers(Cluster(cpu_nodes=True), quiet, lambda: None)
    assert "resources" not in workers._resources("cpu")


def test_every_machine_wants_imdsv2_is_encrypted_and_has_a_role_of_its_own_by_name(cluster: dict[str, Any]) -> None:
    for name, config in node_configs(cluster).items():
        assert config["MetadataOptions"] == {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,  # the launcher's containers are in the host's network
        }
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])
        assert config["IamInstanceProfile"] == {"Name": "busray-head" if name == "head" else "busray-worker"}


def test_no_machine_has_a_public_address_or_a_group_that_the_launcher_would_open(cluster: dict[str, Any]) -> None:
    assert cluster["provider"]["use_internal_ips"] is True
    assert "security_group" not in cluster["provider"]
    assert all(config["SecurityGroupIds"] and config["SubnetIds"] for config in node_configs(cluster).values())
    assert "ssm start-session" in cluster["auth"]["ssh_proxy_command"]
    assert cluster["auth"]["ssh_proxy_use_node_id"] is True


def test_ray_starts_with_token_authentication_and_its_dashboard_on_loopback(cluster: dict[str, Any]) -> None:
    starts = [c for c in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in yaml.safe_dump(cluster)


def test_the_token_travels_as_a_file_that_only_its_owner_reads(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ray/.ray"] == "~/.ray"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])
    assert "RAY_AUTH_TOKEN" not in (ROOT / "cluster.yaml").read_text()


def test_every_spot_worker_has_a_watcher_for_the_node_that_was_just_started(cluster: dict[str, Any]) -> None:
    *_, start, stop, watch = cluster["worker_start_ray_commands"]
    assert "ray start" in start
    pattern = re.search(r'pkill -f "(.+)"', stop)
    assert pattern and not re.search(pattern[1], stop), "pkill would end the shell that calls it"
    assert re.search(pattern[1], watch)
    assert "deploy/spot_watcher.py --address $RAY_HEAD_IP:6379" in watch
    assert (ROOT / "deploy" / "spot_watcher.py").is_file()


def test_ray_has_the_command_and_the_options_that_the_watcher_uses() -> None:
    """The installed Ray's own description: `ray drain-node` is hidden, and its stability is not
    promised."""
    ray = Path(sys.executable).parent / "ray"
    told = subprocess.run([str(ray), "drain-node", "--help"], capture_output=True, text=True).stdout
    options = ("--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds")
    assert [option for option in (*options, "DRAIN_NODE_REASON_PREEMPTION") if option not in told] == []


def test_a_machine_installs_nothing_when_it_starts(cluster: dict[str, Any]) -> None:
    """Libraries and weights are in the image: a spot machine that fetched 6 GB first would cost as
    much as its work."""
    commands = [c for name, many in cluster.items() if name.endswith("_commands") for c in many]
    assert commands and not [c for c in commands if re.search(r"pip|conda|apt|hf download|wget|curl", c)]


def test_no_folder_of_the_clone_goes_to_any_machine(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"].keys() == {"/home/ray/.ray"}


def test_the_image_is_installed_from_the_tested_set_and_has_the_half_precision_weights() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    lines = dockerfile.replace("\\\n", " ").splitlines()
    installs = [part for line in lines for part in line.split("&&") if "pip install" in part]
    assert len(installs) == 3 and all("-c constraints.txt" in part or "--no-deps" in part for part in installs)
    weights = re.findall(r'--include "?([^" ]+)"?', dockerfile)
    names = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for part, stem in names.items():
        assert any(fnmatch(f"{part}/{stem}.fp16.safetensors", pattern) for pattern in weights)
        assert not any(fnmatch(f"{part}/{stem}.safetensors", pattern) for pattern in weights)
        assert any(fnmatch(f"{part}/config.json", pattern) for pattern in weights)
    base = load_config(ROOT / "configs" / "busi-sd15.yaml", ["--dataset.phantoms.images=12"]).base
    assert f"ARG BASE={base.path}\nARG BASE_REVISION={base.revision}\n" in dockerfile


def test_no_command_and_no_file_lets_ray_send_usage_statistics(
    cluster: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    assert "--env RAY_USAGE_STATS_ENABLED=0" in cluster["docker"]["run_options"]
    assert "ENV RAY_USAGE_STATS_ENABLED=0" in (ROOT / "deploy" / "Dockerfile").read_text()
    for pod in pods(manifests):
        (container,) = pod["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [block for path in documents for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)]
    for_a_cluster = [block for block in blocks if re.search(r"\bray (up|start|job|dashboard)", block)]
    assert for_a_cluster
    for block in for_a_cluster:
        assert re.search(r"^export .*RAY_USAGE_STATS_ENABLED=0", block, re.MULTILINE)


LAUNCH = """
import copy, json, sys
import boto3, yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config
with mock_aws():
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    values = {"AMI-ID": ec2.describe_images()["Images"][0]["ImageId"]}
    values["SECURITY-GROUP-ID"] = ec2.create_security_group(GroupName="ours", Description="d", VpcId=vpc)["GroupId"]
    for i in (1, 2):
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{i}.0/24", AvailabilityZone=f"eu-central-1{'ab'[i - 1]}")
        values[f"SUBNET-ID-{i}"] = subnet["Subnet"]["SubnetId"]
    for name in ("busray-head", "busray-worker"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    text = open(sys.argv[1]).read()
    for name, value in values.items():
        text = text.replace(name, value)
    groups = len(ec2.describe_security_groups()["SecurityGroups"])
    config = bootstrap_aws(prepare_config(yaml.safe_load(text)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    machines = {}
    for kind, node in config["available_node_types"].items():
        (made,) = provider.create_node(copy.deepcopy(node["node_config"]), {"ray-node-kind": kind}, 1).values()
        machines[kind] = {
            "lifecycle": made.instance_lifecycle,
            "tokens": made.metadata_options["HttpTokens"],
            "public": made.public_ip_address,
            "profile": made.iam_instance_profile["Arn"].split("/")[-1],
        }
    roles = sorted(role["RoleName"] for role in iam.list_roles()["Roles"])
    made_groups = len(ec2.describe_security_groups()["SecurityGroups"]) - groups
    print(json.dumps({"machines": machines, "roles": roles, "made_groups": made_groups}))
"""


def test_rays_launcher_starts_these_machines_and_makes_no_role_and_no_security_group(tmp_path: Path) -> None:
    """Against a simulated EC2, in a process of its own: moto's simulation would empty the S3
    server beside it."""
    (tmp_path / ".ssh").mkdir()
    own = {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(ROOT / "cluster.yaml")],
        env={**own, "AWS_DEFAULT_REGION": "eu-central-1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])
    worker = {"lifecycle": "spot", "tokens": "required", "public": None, "profile": "busray-worker"}
    assert told["machines"].pop("head") == {**worker, "lifecycle": None, "profile": "busray-head"}
    assert len(told["machines"]) == 4 and all(machine == worker for machine in told["machines"].values())
    assert told["roles"] == ["busray-head", "busray-worker"] and told["made_groups"] == 0


# ---- kuberay.yaml ----


def pods(manifests: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The specification of the head's pod, then of each group of workers."""
    spec = manifests["RayJob/busray"]["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_the_rayjob_makes_the_same_choices_as_the_cluster_file(manifests: dict[str, dict[str, Any]]) -> None:
    job = manifests["RayJob/busray"]["spec"]
    spec = job["rayClusterSpec"]
    assert job["shutdownAfterJobFinishes"] is True and job["jobId"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    head, *workers = pods(manifests)
    assert set(head["nodeSelector"].values()) == {"ON_DEMAND"}
    assert len(workers) == 2 and all(set(worker["nodeSelector"].values()) == {"SPOT"} for worker in workers)


def test_containers_have_no_rights_to_gain_and_workers_no_kubernetes_token(
    manifests: dict[str, dict[str, Any]],
) -> None:
    head, *workers = pods(manifests)
    options = manifests["RayJob/busray"]["spec"]["rayClusterSpec"]["autoscalerOptions"]
    for container in (*(container for pod in (head, *workers) for container in pod["containers"]), options):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["runAsNonRoot"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert manifests["ServiceAccount/busray-worker"]["automountServiceAccountToken"] is False
    assert head["serviceAccountName"] == "busray-head"
    for worker in workers:
        assert worker["automountServiceAccountToken"] is False
        assert worker["serviceAccountName"] == "busray-worker"


def test_only_ray_pods_and_the_operator_reach_ray_pods(manifests: dict[str, dict[str, Any]]) -> None:
    policy = manifests["NetworkPolicy/busray"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    among, operator = policy["ingress"]
    assert among == {"from": [{"podSelector": policy["podSelector"]}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    (peer,) = operator["from"]
    assert peer.keys() == {"namespaceSelector", "podSelector"}, "both, or every pod of that namespace is let in"
    kinds = {each["kind"] for each in manifests.values()}
    assert kinds == {"ServiceAccount", "RayJob", "NetworkPolicy"}, "no Secret in a file, no Ingress, no open Service"


def test_a_stopping_worker_drains_within_its_grace_and_the_notice(manifests: dict[str, dict[str, Any]]) -> None:
    for worker in pods(manifests)[1:]:
        (container,) = worker["containers"]
        hook = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        stopping, sleep = (int(re.search(rf"{word} (\d+)", hook)[1]) for word in ("--stopping-in", "sleep"))  # type: ignore[index]
        assert sleep < stopping < worker["terminationGracePeriodSeconds"] < 120


def test_busray_accepts_the_commands_of_the_kubernetes_job_and_of_the_guide(
    manifests: dict[str, dict[str, Any]],
) -> None:
    submitted = re.search(r"ray job submit.+?-- \\\n(.+?)\n\n", GUIDE.read_text(), re.DOTALL)
    assert submitted
    for command in (manifests["RayJob/busray"]["spec"]["entrypoint"], submitted[1].replace("\\\n", " ")):
        program, job, *words = shlex.split(command)
        assert (program, job) == ("python", "jobs/pipeline.py") and (ROOT / job).is_file()
        own, flags = split_settings(["run", *words], build_parser())
        config = load_config(ROOT / build_parser().parse_args(own).config, flags)
        assert config.cluster.cpu_nodes and config.base.path == "/home/ray/stable-diffusion-v1-5"


# ---- images and roles ----


def test_images_are_pinned_to_the_ray_of_the_constraints(
    cluster: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    assert cluster["docker"]["image"] == IMAGE
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"\nFROM {RAYS_IMAGE}\n" in dockerfile
    spec = manifests["RayJob/busray"]["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == RAY
    images = {container["image"] for pod in pods(manifests) for container in pod["containers"]}
    assert images == {IMAGE}
    assert f"ray.__version__ == '{RAY}'" in dockerfile


def statements(name: str) -> list[dict[str, Any]]:
    policy = json.loads((ROOT / "deploy" / name).read_text())
    assert policy["Version"] == "2012-10-17"
    return policy["Statement"]


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_the_bucket_role_reads_and_creates_below_the_prefix_and_deletes_what_gc_does() -> None:
    allowed = [s for s in statements("iam-policy.json") if s["Effect"] == "Allow"]
    actions = {action: s for s in allowed for action in listed(s["Action"])}
    # Ray Train asks whether the bucket is there by its location; without the right s3fs goes on to
    # create it.
    location = {"s3:GetBucketLocation"}
    assert actions.keys() == {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"} | location
    assert actions["s3:ListBucket"]["Condition"]["StringLike"]["s3:prefix"] == ["PREFIX", "PREFIX/*"]
    assert actions["s3:GetObject"]["Resource"] == actions["s3:PutObject"]["Resource"] == "arn:aws:s3:::BUCKET/PREFIX/*"
    deleted = [
        f"arn:aws:s3:::BUCKET/PREFIX/{what}" for what in ("*/data/*", "*/first-draws/*", "doctor-*", "*/doctor-*")
    ]
    assert actions["s3:DeleteObject"]["Resource"] == deleted, "what `busray gc --delete` and the store's check delete"


def test_the_head_role_starts_and_ends_machines_of_this_cluster_only(cluster: dict[str, Any]) -> None:
    for statement in statements("iam-head-policy.json"):
        actions = listed(statement["Action"])
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert actions == ["ec2:DescribeInstances"]
        if "ec2:TerminateInstances" in actions:
            tags = statement["Condition"]["StringEquals"]
            assert tags == {"aws:ResourceTag/ray-cluster-name": cluster["cluster_name"]}
        if actions == ["iam:PassRole"]:
            assert statement["Resource"].endswith(":role/busray-worker")
