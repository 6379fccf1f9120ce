"""The machines that `busray plan` compares a config's width with."""

from busray.cluster.session import machines
from busray.config import Cluster


def test_a_named_clusters_machines_are_its_nodes() -> None:
    where, nodes = machines(Cluster(address="auto"))
    assert where == "the cluster at auto now"
    assert nodes == [(4.0, 0.0)]
