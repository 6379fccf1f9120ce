"""Which clusters a run is refused on: the decision alone. tests/chaos asks real ones."""

import pytest

from busray.cluster.session import refusal


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
