"""cluster.yaml is what Ray's own launcher accepts."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"


def test_rays_launcher_accepts_the_cluster_file() -> None:
    config = yaml.safe_load(FILE.read_text())
    validate_config(prepare_config(config))
    workers = config["available_node_types"]["gpu"]
    assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"], "the head must stay"
