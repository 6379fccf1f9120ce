"""Which clusters and addresses a run is refused on. tests/chaos asks real clusters."""

import socket

import pytest

from busray.cluster_address import check_address, refusal
from busray.config import Cluster
from busray.records import UserError


@pytest.mark.parametrize("dashboard", ["", "127.0.0.1:8265", "localhost:8265", "[::1]:8265", "10.0.0.7:8265"])
def test_a_cluster_that_asks_for_a_token_in_a_private_network_is_fine(dashboard: str) -> None:
    assert refusal(dashboard, asks=True) is None


@pytest.mark.parametrize("dashboard", ["", "127.0.0.1:8265", "10.0.0.7:8265", "8.8.8.8:8265", "head.example:8265"])
def test_a_cluster_that_asks_for_none_is_refused_with_the_mend(dashboard: str) -> None:
    message = refusal(dashboard, asks=False)
    assert message is not None
    assert "RAY_AUTH_MODE=token" in message and "cluster.allow_insecure=true" in message
    seen = bool(dashboard) and not dashboard.startswith("127.")
    assert (f"open at {dashboard}" in message) == seen


@pytest.mark.parametrize("dashboard", ["8.8.8.8:8265", "[2606:4700::1111]:8265"])
def test_a_dashboard_at_a_public_address_is_refused_even_with_a_token(dashboard: str) -> None:
    message = refusal(dashboard, asks=True)
    assert message is not None
    assert dashboard in message and "--dashboard-host=127.0.0.1" in message


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "is the address of a dashboard .* such as 127.0.0.1:6379"),
        ("ray://head:10001", "is for Ray Client.* such as head:6379"),
        ("tcp://head:6379", "is no address of a Ray cluster"),
        ("head", "is no address of a Ray cluster"),
        ("head:", "is no address of a Ray cluster"),
        (":6379", "is no address of a Ray cluster"),
        ("head:99999", "is no address of a Ray cluster"),
    ],
)
def test_an_address_that_no_cluster_can_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"^cluster.address: {address} {said}"):
        check_address(Cluster(address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS \(an environment variable\): {address} {said}"):
        check_address(Cluster())


def test_an_address_where_nobody_answers_is_refused_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"RAY_ADDRESS .*nobody answers at 127.* start the cluster, or unset RAY_ADDR"):
        check_address(Cluster())
    check_address(Cluster(address="local"))


def test_an_address_where_somebody_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(Cluster(address=f"127.0.0.1:{server.getsockname()[1]}"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_address(Cluster())
