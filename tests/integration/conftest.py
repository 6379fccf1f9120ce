"""One S3 server and one local Ray for all integration tests; Ray starts after the server, so
that workers know it."""

import os
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from busray.cluster.own import own_ray
from busray.stages import classifiers as classify
from tests.support.finished import CLASSIFIER_STEPS, finished, one_thread

__all__ = ["finished", "one_thread"]

BUCKET = "busray-integration"
PLANTED_KEY, PLANTED_SECRET = "AKIAPLANTED0000EXAMPLE", "planted/Secret+0123456789abcdefghijklmn"
"""Looked for in everything that a run and Ray write; the server takes any."""


@pytest.fixture(scope="session")
def bucket(one_creator_wins: None) -> Iterator[str]:
    """URL of an empty bucket on a loopback server; its address and keys are in the environment,
    as on a cluster."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        AWS_ENDPOINT_URL_S3=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID=PLANTED_KEY,
        AWS_SECRET_ACCESS_KEY=PLANTED_SECRET,
        AWS_DEFAULT_REGION="us-east-1",
    )
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def short_trainings() -> Iterator[None]:
    """Of the class gate and the judge: what they say of a few simulated images is not what
    these tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "STEPS", CLASSIFIER_STEPS)
        yield


@pytest.fixture(scope="session", autouse=True)
def local_ray(bucket: str) -> Iterator[None]:
    """Four logical CPUs whatever the machine has: two training workers beside Ray's own actors.
    Workers are as nice as the unit tests beside them, by Ray's default of 15 they would wait
    for those."""
    config = {"worker_niceness": 0, "metrics_report_interval_ms": 1000}
    with own_ray(num_cpus=4, _system_config=config):
        yield
