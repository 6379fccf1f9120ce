"""Nodes of a cluster on this machine: a raylet stands in for each (ray.cluster_utils)."""

from contextlib import suppress
from typing import Any

from ray.cluster_utils import Cluster


class Nodes(Cluster):
    """A head and the nodes that a test adds to it."""

    def add_node(self, *arguments: Any, **options: Any) -> Any:
        """A new node. It is tried again: Ray's own limit on a start is short for a busy machine."""
        if self.head_node is not None:
            for _ in range(3):
                with suppress(Exception):
                    return super().add_node(*arguments, **options)
        return super().add_node(*arguments, **options)
