"""The cluster files are what Ray and KubeRay read, open no port, and name pinned versions.

Ray's own check sees neither what is in a node's configuration nor who may reach it: the rest is
checked here. Each check is shown to fail on a broken copy.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tune_ext.benchmark._preflight import hints, room
from tune_ext.benchmark.cell_run import Place
from tune_ext.benchmark.study_file import load_study

ROOT = Path(__file__).parents[1]
CLOUDS = ["cluster.yaml", "docs/cluster/gcp.yaml"]
LAUNCHED = [*CLOUDS, "docs/cluster/local.yaml"]
KUBERAY = "docs/cluster/kuberay.yaml"
PYTHON = "py311"

# Of KubeRay's API reference, ray.io/v1: what may stand where.
FIELDS = {
    "cluster": "apiVersion kind metadata spec",
    "spec": "suspend managedBy autoscalerOptions headServiceAnnotations enableInTreeAutoscaling "
    "gcsFaultToleranceOptions headGroupSpec rayVersion workerGroupSpecs authOptions",
    "autoscalerOptions": "resources image imagePullPolicy securityContext idleTimeoutSeconds "
    "upscalingMode version env envFrom volumeMounts",
    "headGroupSpec": "template headService enableIngress rayStartParams serviceType resources "
    "labels",
    "workerGroupSpecs": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds "
    "rayStartParams template scaleStrategy numOfHosts resources labels",
    "pod": "serviceAccountName containers nodeSelector tolerations volumes initContainers",
    "container": "name image imagePullPolicy resources securityContext env volumeMounts ports",
}


def load(name: str) -> Any:
    documents = list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")))
    return documents if name == KUBERAY else documents[0]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found.group(1)


def texts(value: Any) -> Iterator[str]:
    """Every string in some data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(key)
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def refused_by_ray(config: dict[str, Any]) -> Iterator[str]:
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:
        yield f"Ray: {str(error).splitlines()[0]}"


def wrong_versions(config: Any) -> Iterator[str]:
    for text in texts(config):
        for image in re.findall(r"\S+/(?:ray|tune-ext):\S+", text):
            tag = image.rpartition(":")[2]
            if not re.fullmatch(rf"{re.escape(pinned('ray'))}-{PYTHON}-(cpu|cu13\d)", tag):
                yield f"image {image}"
        if re.search(r"pip install (?!.*-c constraints\.txt)(?!.*'(boto3|google-api))", text):
            yield f"not pinned: {text}"


def open_doors(config: dict[str, Any]) -> Iterator[str]:
    """What anybody could come in by."""
    provider, nodes = config["provider"], config.get("available_node_types", {})
    if provider.get("security_group"):
        yield "a group that Ray makes lets in SSH from everywhere"
    for name, node in nodes.items():
        machine = node["node_config"]
        if provider["type"] == "aws" and not machine.get("SecurityGroupIds"):
            yield f"{name}: a group that Ray makes lets in SSH from everywhere"
        if provider["type"] == "gcp" and not machine.get("networkInterfaces"):
            yield f"{name}: the default network lets in SSH from everywhere"
    for text in texts(config):
        if "0.0.0.0" in text or "::/0" in text:
            yield f"open to everybody: {text}"
        if "ray start --head" in text and "--dashboard-host=127.0.0.1" not in text:
            yield "the dashboard answers to other machines"
    if not any("ray start --head" in c for c in config["head_start_ray_commands"]):
        yield "no head is started"


def unfit_machines(config: dict[str, Any]) -> Iterator[str]:
    """What the clouds would refuse, or what would cost more than it says."""
    if not 0 < config["idle_timeout_minutes"] <= 30:
        yield "workers stay when they are idle"
    nodes = config["available_node_types"]
    workers = {n: v for n, v in nodes.items() if n != config["head_node_type"]}
    if nodes[config["head_node_type"]]["resources"] != {"CPU": 0}:
        yield "trials would run on the head"
    aws = config["provider"]["type"] == "aws"
    if aws:
        yield from unknown_to_aws(nodes)
    for name, node in workers.items():
        machine = node["node_config"]
        market = machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        spot = market if aws else {"preemptible": True} in machine["scheduling"]
        if node["min_workers"] != 0 or ("spot" in name) != spot:
            yield f"{name}: a machine that is never given back, or of another kind than its name"
        if node["resources"].get("GPU", 0) < 1:
            yield f"{name}: no GPU"
        if not machine.get("IamInstanceProfile" if aws else "serviceAccounts"):
            yield f"{name}: does not reach the bucket"
        if not aws and {"onHostMaintenance": "TERMINATE"} not in machine["scheduling"]:
            yield f"{name}: a machine with a GPU cannot be moved"


def unknown_to_aws(nodes: dict[str, Any]) -> Iterator[str]:
    known = {"InstanceType", "ImageId", "SecurityGroupIds", "IamInstanceProfile"}
    known |= {"BlockDeviceMappings", "MetadataOptions", "InstanceMarketOptions"}
    for name, node in nodes.items():
        if lacking := {"InstanceType", "ImageId"} - set(node["node_config"]):
            yield f"{name}: needs {lacking}"
        if more := set(node["node_config"]) - known:
            yield f"{name}: unknown {more}"


def unknown_to_kuberay(cluster: dict[str, Any], groups: list[Any]) -> Iterator[str]:
    pods = [group["template"]["spec"] for group in groups]
    parts = [("cluster", cluster), ("spec", cluster["spec"]), ("headGroupSpec", groups[0])]
    parts += [("autoscalerOptions", cluster["spec"]["autoscalerOptions"])]
    parts += [("workerGroupSpecs", group) for group in groups[1:]]
    parts += [("pod", pod) for pod in pods]
    parts += [("container", container) for pod in pods for container in pod["containers"]]
    for kind, part in parts:
        if unknown := set(part) - set(FIELDS[kind].split()):
            yield f"{kind}: unknown {unknown}"


def open_pods(cluster: dict[str, Any], policy: dict[str, Any]) -> Iterator[str]:
    head = cluster["spec"]["headGroupSpec"]
    if head["serviceType"] != "ClusterIP" or head.get("enableIngress"):
        yield "the head is reached from outside"
    own = {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}
    if policy["kind"] != "NetworkPolicy" or policy["spec"] != {
        "podSelector": own,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": own}]}],
    }:
        yield "other pods may come in"


def unfit_manifest(documents: list[Any]) -> Iterator[str]:
    cluster, policy = documents
    spec = cluster["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    yield from unknown_to_kuberay(cluster, groups)
    if (cluster["apiVersion"], cluster["kind"]) != ("ray.io/v1", "RayCluster"):
        yield "not a RayCluster of ray.io/v1"
    if spec["rayVersion"] != pinned("ray"):
        yield "another Ray"
    if not all(isinstance(v, str) for g in groups for v in g["rayStartParams"].values()):
        yield "rayStartParams must be strings"
    if groups[0]["rayStartParams"].get("num-cpus") != "0":
        yield "trials would run on the head"
    if (
        not spec["enableInTreeAutoscaling"]
        or spec["autoscalerOptions"]["idleTimeoutSeconds"] > 1800
    ):
        yield "workers stay when they are idle"
    for group in groups[1:]:
        if not 0 == group["minReplicas"] == group["replicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas"
        limits = group["template"]["spec"]["containers"][0]["resources"]
        if limits["limits"] != limits["requests"] or "nvidia.com/gpu" not in limits["limits"]:
            yield f"{group['groupName']}: resources"
    yield from open_pods(cluster, policy)


def problems(name: str, config: Any) -> list[str]:
    if name == KUBERAY:
        return [*unfit_manifest(config), *wrong_versions(config)]
    if refused := list(refused_by_ray(config)):
        return refused
    found = [*wrong_versions(config), *open_doors(config)]
    return [*found, *(unfit_machines(config) if name in CLOUDS else ())]


@pytest.mark.parametrize("name", [*LAUNCHED, KUBERAY])
def test_file_is_sound(name):
    assert problems(name, load(name)) == []


def put(path: str, value: Any) -> Callable[[Any], None]:
    """A change of one value, by its path; None removes it."""

    def change(config: Any) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in way:
            config = config[key]
        if value is None:
            del config[last]
        else:
            config[last] = value

    return change


AWS, GCP, LOCAL = LAUNCHED
NODE = "available_node_types/gpu_spot"
SPOT = f"{NODE}/node_config"
WORLD = {"GroupName": "open", "IpPermissions": [{"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]}


@pytest.mark.parametrize(
    ("name", "path", "value", "told"),
    [
        (AWS, "max_worker", 8, "Ray: Additional properties"),
        (AWS, "head_node_type", "boss", "Ray: `head_node_type`"),
        (AWS, f"{NODE}/resources", None, "Ray: 'resources' is a required"),
        (AWS, "docker/image", "rayproject/ray:2.59.0-py311-cu130", "image"),
        (AWS, "docker/head_image", "rayproject/ray:latest", "image"),
        (AWS, "setup_commands/0", "pip install 'tune-ext[compare]'", "not pinned"),
        (AWS, f"{SPOT}/SecurityGroupIds", None, "gpu_spot: a group that Ray makes"),
        (AWS, "provider/security_group", WORLD, "open to everybody"),
        (AWS, "head_start_ray_commands/1", "ray start --head --dashboard-host=0.0.0.0", "answers"),
        (AWS, "idle_timeout_minutes", 600, "idle"),
        (AWS, "available_node_types/head/resources", {}, "on the head"),
        (AWS, f"{SPOT}/InstanceMarketOptions", None, "never given back"),
        (AWS, f"{NODE}/min_workers", 1, "never given back"),
        (AWS, f"{SPOT}/IamInstanceProfile", None, "bucket"),
        (AWS, f"{SPOT}/InstanceTyp", "g5.xlarge", "unknown"),
        (AWS, f"{NODE}/resources", {"CPU": 4}, "no GPU"),
        (GCP, f"{SPOT}/networkInterfaces", None, "default network"),
        (GCP, f"{SPOT}/scheduling", [{"preemptible": True}], "cannot be moved"),
        (LOCAL, "provider/worker_ips", None, "Ray"),
        (LOCAL, "head_start_ray_commands/1", "ray start --head", "dashboard"),
        (KUBERAY, "0/spec/workerGroupSpecs/0/minReplica", 0, "unknown"),
        (KUBERAY, "0/spec/workerGroupSpecs/0/minReplicas", 3, "replicas"),
        (KUBERAY, "0/spec/rayVersion", "2.59.0", "another Ray"),
        (KUBERAY, "0/spec/headGroupSpec/serviceType", "LoadBalancer", "from outside"),
        (KUBERAY, "0/spec/headGroupSpec/rayStartParams/num-cpus", 0, "strings"),
        (KUBERAY, "1/spec/ingress", [{}], "other pods"),
    ],
)
def test_broken_copies_are_told(name, path, value, told):
    config = copy.deepcopy(load(name))
    put(path, value)(config)
    found = problems(name, config)
    assert any(told in problem for problem in found), found


FAKE_AWS = """#!/bin/sh
printf '%s\\n' "$*" | tr '\\n' ' ' >> "$CALLS"; echo >> "$CALLS"
case "$*" in
  *create-role*) echo "EntityAlreadyExists: it was there" >&2; exit 254 ;;
  *describe-vpcs*) echo vpc-1 ;;
  *describe-security-groups*) echo sg-1 ;;
  *get-caller-identity*) echo 42 ;;
  *get-parameter*) echo ami-1 ;;
  *"$FAILS"*) echo "AccessDenied: you may not" >&2; exit 254 ;;
esac
"""


def prepare(tmp_path, fails="nothing"):
    fake = tmp_path / "aws"
    fake.write_text(FAKE_AWS, encoding="utf-8")
    fake.chmod(0o755)
    shutil.copy(ROOT / "cluster.yaml", tmp_path)
    script = str(ROOT / "docs" / "cluster" / "prepare-aws.sh")
    environment = {**os.environ, "AWS": str(fake), "CALLS": str(tmp_path / "calls")}
    return subprocess.run(
        ["sh", script, "eu-west-1", "my-bucket", "198.51.100.7"],
        cwd=tmp_path,
        env={**environment, "FAILS": fails},
        capture_output=True,
        text=True,
        check=False,
    )


def test_prepared_account_lets_in_ssh_from_one_address(tmp_path):
    done = prepare(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text(encoding="utf-8")
    opened = [line for line in calls.splitlines() if "authorize-security-group-ingress" in line]
    assert len(opened) == 2
    assert "--port 22 --cidr 198.51.100.7/32" in opened[0]
    assert "--source-group sg-1" in opened[1]
    policies = re.findall(r"--policy-document (\{.*\})", calls)
    worker, head = (json.dumps(json.loads(policy)) for policy in policies)
    assert "arn:aws:s3:::my-bucket/*" in worker
    assert "ec2:" not in worker
    assert "role/tune-ext-worker" in head
    config = yaml.safe_load((tmp_path / "my-cluster.yaml").read_text(encoding="utf-8"))
    assert problems(AWS, config) == []
    assert not any("REPLACE_ME" in text for text in texts(config))
    assert config["provider"]["availability_zone"].startswith("eu-west-1a,")


def test_prepare_ends_with_what_is_not_allowed(tmp_path):
    done = prepare(tmp_path, fails="create-instance-profile")
    assert done.returncode == 1
    assert "AccessDenied" in done.stdout
    assert not (tmp_path / "my-cluster.yaml").exists()


def test_machines_have_what_the_table_says():
    """The resources of a worker are those of its machine, as the guide's table has them."""
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+\.\S+|g2-\S+) .*\| CPU (\d+), GPU (\d+) \|$", guide, re.MULTILINE)
    table = {name: {"CPU": int(cpus), "GPU": int(gpus)} for name, cpus, gpus in rows}
    assert len(table) == 9
    for name in CLOUDS:
        for kind, node in load(name)["available_node_types"].items():
            machine = node["node_config"]
            if kind != "head":
                what = machine.get("InstanceType") or machine["machineType"]
                assert table[what] == node["resources"]


def test_first_study_fits_the_cluster():
    study = load_study(ROOT / "docs" / "cluster" / "first" / "study.toml")
    assert hints(Place("auto", "/shared", gpus_per_trial=0.25), study) == []
    assert room({"CPU": 1, "GPU": 0.25}, [({"CPU": 4, "GPU": 1}, 1)]) == study.workers


def test_what_a_user_fills_in_is_marked():
    """Nothing that looks like somebody's own: accounts, machines, addresses, keys."""
    for name in [*LAUNCHED, KUBERAY]:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "REPLACE_ME" in text
        assert not re.search(r"\b(ami|sg|subnet|vpc)-[0-9a-f]{8,}\b|\b\d{12}\b|AKIA", text)
