"""What the cluster's managers tell, right and wrong, and what is found out before
TensorFlow's servers start.
"""

import json
import socket
import subprocess
import sys
import types

import pytest

from tpu_utils import connections
from tpu_utils.cluster import addresses_of, check_cluster, index_of, resolve_cluster
from tpu_utils.platforms import PlatformError

TWO = ["host0:2222", "host1:2222"]


def tf_config(monkeypatch, cluster, task):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    return resolve_cluster("tf_config")


def test_tf_config(monkeypatch):
    resolver = tf_config(monkeypatch, {"worker": TWO}, {"type": "worker", "index": "1"})
    assert addresses_of(resolver) == TWO and index_of(resolver) == 1
    resolver = tf_config(
        monkeypatch, {"worker": TWO, "chief": ["host2:1"]}, {"type": "worker", "index": 0}
    )
    assert addresses_of(resolver) == ["host2:1", *TWO] and index_of(resolver) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "`TF_CONFIG` is not set"),
        ("{bad", "`TF_CONFIG` is '{bad'"),
        ("[]", "`TF_CONFIG` is '[]'"),
        ("{}", "`TF_CONFIG` is '{}'"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "at most one chief"),
        ('{"cluster": {"worker": 3}, "task": {"type": "worker", "index": 0}}', "must look like"),
        ('{"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}', "'worker' 0"),
        ('{"cluster": {"worker": ["a:1"]}}', "is not in its cluster"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "'worker' 1 is not in its cluster",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}',
            "must look like",
        ),
        (
            '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
            "at most one chief",
        ),
    ],
)
def test_a_malformed_tf_config(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(PlatformError) as error:
        resolve_cluster("tf_config")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(PlatformError, match="SLURM_PROCID, .*start every worker by srun"):
        resolve_cluster("slurm")
    told = {
        "PROCID": "3",
        "STEP_NUM_TASKS": "4",
        "STEP_NODELIST": "node[1-2]",
        "STEP_TASKS_PER_NODE": "2(x2)",
    }
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolver = resolve_cluster("slurm", port=5000)
    assert addresses_of(resolver) == ["node1:5000", "node1:5001", "node2:5000", "node2:5001"]
    assert index_of(resolver) == 3
    assert resolver.num_accelerators() == {"GPU": 0}
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x2)")
    with pytest.raises(PlatformError, match="its variables cannot be read"):
        resolve_cluster("slurm")


def pods(monkeypatch, phases, host_ips):
    """A package `kubernetes` whose cluster has such pods."""
    items = [
        types.SimpleNamespace(
            metadata=types.SimpleNamespace(name=f"pod{index}"),
            status=types.SimpleNamespace(phase=phase, host_ip=host_ip),
        )
        for index, (phase, host_ip) in enumerate(zip(phases, host_ips))
    ]
    listing = types.SimpleNamespace(items=items)
    api = types.SimpleNamespace(list_pod_for_all_namespaces=lambda label_selector: listing)
    package = types.ModuleType("kubernetes")
    package.config = types.SimpleNamespace(load_kube_config=lambda: None)
    package.client = types.SimpleNamespace(CoreV1Api=lambda: api)
    monkeypatch.setitem(sys.modules, "kubernetes", package)


def test_kubernetes(monkeypatch):
    wanted = dict(pod_selector="job-name=advprop", num_workers=2, timeout_seconds=0.0, port=2345)
    # The first address is nobody's, by standard.
    pods(monkeypatch, ["Running", "Running"], ["192.0.2.7", "127.0.0.1"])
    resolver = resolve_cluster("kubernetes", **wanted)
    assert addresses_of(resolver) == ["192.0.2.7:2345", "127.0.0.1:2345"]
    assert index_of(resolver) == 1
    pods(monkeypatch, ["Running", "Pending"], ["192.0.2.7", None])
    with pytest.raises(PlatformError, match='Pod "pod1" is not running.*kubectl get pods'):
        resolve_cluster("kubernetes", **wanted)
    pods(monkeypatch, ["Running"], ["127.0.0.1"])
    with pytest.raises(PlatformError, match="Kubernetes has 1 pods after 0 s"):
        resolve_cluster("kubernetes", **wanted)
    with pytest.raises(PlatformError, match="--pod_selector or --num_workers is missing"):
        resolve_cluster("kubernetes")


def test_without_the_package_kubernetes(monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(PlatformError, match="pip install kubernetes"):
        resolve_cluster("kubernetes", pod_selector="job-name=a", num_workers=2)


@pytest.mark.parametrize(
    "cluster, message",
    [
        (["host0", "host1:1"], "'host0' is not host:port"),
        (["127.0.0.1:70000", "host1:1"], "is not host:port"),
        (["127.0.0.1:1", "127.0.0.1:1"], "'127.0.0.1:1' twice"),
        (
            ["127.0.0.1:1", "no-such-host.invalid:1"],
            "'no-such-host.invalid:1', but the name does not resolve",
        ),
    ],
)
def test_addresses(monkeypatch, cluster, message):
    resolver = tf_config(monkeypatch, {"worker": cluster}, {"type": "worker", "index": 0})
    with pytest.raises(PlatformError, match=message):
        check_cluster(resolver)


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        own = f"127.0.0.1:{other.getsockname()[1]}"
        assert connections.is_reachable(own)
        resolver = tf_config(monkeypatch, {"worker": [own]}, {"type": "worker", "index": 0})
        with pytest.raises(PlatformError, match="another process listens on that port"):
            check_cluster(resolver)
    check_cluster(resolver)
    assert not connections.is_reachable(own)


def test_a_wait_without_end_is_ended():
    program = """
import sys, time
from tpu_utils.connections import end_unless_done
with end_unless_done(30.0, "never shown"):
    pass
with end_unless_done(0.2, "nobody came.", ["127.0.0.1:9"]):
    time.sleep(60)
"""
    root = connections.pathlib.Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == -9
    assert ended.stderr == "error: nobody came. Nothing answers at 127.0.0.1:9.\n"
