"""One S3 server (moto) for the chaos tests of storage, with the fault proxy in front of it, and a
cluster on this machine."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import ray
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from tests.support.fault_proxy import FaultProxy
from tests.support.nodes import Nodes

BUCKET = "busray-chaos"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server(one_creator_wins: None) -> Iterator[str]:
    """Address of the server itself, past the proxy; its keys are in the environment, children
    have them too."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
    yield f"http://{host}:{port}"
    server.stop()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def _proxy(s3_server: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def proxy(_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """Without rules and counts at the start of each test; `proxy.url` is the faulty endpoint."""
    _proxy.clear()
    yield _proxy
    _proxy.clear()


@pytest.fixture
def fresh_connections() -> None:
    """For tests that give the server's address in the environment: fsspec keeps connections by
    their arguments only."""
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket_url(s3_server: str, request: pytest.FixtureRequest) -> str:
    """A folder of the bucket that is this test's alone."""
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head without work and nodes that a test adds; this process is its driver."""
    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder with a token, not below pytest's own: Ray's sockets lie in it, and Linux
    takes 107 characters."""
    with tempfile.TemporaryDirectory(prefix="busray-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / ".ray" / "auth_token"
        token.parent.mkdir()
        token.touch(0o600)
        token.write_text("planted-ray-token-0123456789abcdef0123456789")
        yield Path(folder)
