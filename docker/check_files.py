"""Check the container files and units without an engine: syntax, pinned images, no root, no rights, no secrets in them,
and that every file they name exists."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_SECRET = re.compile(r"(?i)(key|secret|token|password|passwd)\w*=")
_UNIT = {
    "NoNewPrivileges": ["yes"],
    "CapabilityBoundingSet": [""],
    "AmbientCapabilities": [""],
    "ProtectSystem": ["strict"],
    "ProtectHome": ["yes"],
    "PrivateTmp": ["yes"],
    "UMask": ["0077"],
    "StateDirectoryMode": ["0700"],
    "IPAddressDeny": ["any"],
    "IPAddressAllow": ["localhost"],
    "RestrictAddressFamilies": ["AF_UNIX AF_INET AF_INET6"],
    "RestrictNamespaces": ["yes"],
    "RestrictSUIDSGID": ["yes"],
    "RestrictRealtime": ["yes"],
    "LockPersonality": ["yes"],
    "ProtectKernelTunables": ["yes"],
    "ProtectKernelModules": ["yes"],
    "ProtectControlGroups": ["yes"],
    "ProtectProc": ["invisible"],
    "SystemCallFilter": ["@system-service"],
    "SystemCallArchitectures": ["native"],
    "LimitCORE": ["0"],
}


def containerfile(path: Path) -> list[str]:
    """Return what is wrong with one Containerfile, in words."""
    source: Any = io.BytesIO(path.read_bytes())  # bytes, though its annotation says text
    parser = DockerfileParser(fileobj=source)
    steps = parser.structure
    wrong = []
    arguments = {
        key: value
        for step in steps
        if step["instruction"] == "ARG"
        for key, _, value in [step["value"].partition("=")]
    }
    images = [step["value"].split()[0] for step in steps if step["instruction"] == "FROM"]
    for image in images:
        image = arguments.get(image.strip("${}"), image)
        if ":" not in image or image.endswith(":latest"):
            wrong.append(f"{path.name}: image {image!r} has no pinned tag")
    last = max(i for i, step in enumerate(steps) if step["instruction"] == "FROM")
    final = steps[last:]
    users = [step["value"] for step in final if step["instruction"] == "USER"]
    # A number, so that an engine can tell that it is not root.
    if (
        not users
        or not users[-1].partition(":")[0].isdigit()
        or int(users[-1].split(":")[0]) < 1000
    ):
        wrong.append(
            f"{path.name}: the final stage must run as a number from 1000 on, got {users[-1:]}"
        )
    for step in steps:
        if step["instruction"] == "ADD":
            wrong.append(f"{path.name}: ADD fetches and unpacks; use COPY")
        if step["instruction"] in ("ENV", "ARG") and _SECRET.search(step["value"]):
            wrong.append(f"{path.name}: {step['value'][:40]} looks like a secret")
        if step["instruction"] == "RUN" and re.search(
            r"(curl|wget).*\||chmod\s+\S*[4267]777|sudo", step["value"]
        ):
            wrong.append(f"{path.name}: RUN {step['value'][:60]}")
    if not any(step["instruction"] == "ENTRYPOINT" for step in final):
        wrong.append(f"{path.name}: no ENTRYPOINT")
    for step in steps:
        if step["instruction"] == "COPY" and "--from" not in step["value"]:
            source = step["value"].split()[0]
            if not (ROOT / source).exists():
                wrong.append(f"{path.name}: COPY {source}: no such file")
    return wrong


def compose(path: Path) -> list[str]:
    """Return what is wrong with compose.yaml, in words."""
    document = yaml.safe_load(path.read_text())
    services, wrong = document["services"], []
    for name, service in services.items():
        if ("image" in service) == ("build" in service):
            wrong.append(f"compose: {name} needs exactly one of image and build")
        image = service.get("image", "pinned:tag")
        if ":" not in image or image.endswith(":latest"):
            wrong.append(f"compose: {name}: image {image!r} has no pinned tag")
        if "build" in service and not (ROOT / service["build"]["dockerfile"]).exists():
            wrong.append(f"compose: {name}: no {service['build']['dockerfile']}")
        wrong += confined(name, service)
        for needed in service.get("depends_on", []):
            if needed not in services:
                wrong.append(f"compose: {name} depends on unknown {needed!r}")
        for secret in service.get("secrets", []):
            if secret not in document["secrets"]:
                wrong.append(f"compose: {name} uses unknown secret {secret!r}")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./") and not (HERE / source).exists():
                wrong.append(f"compose: {name} mounts {source}: no such file")
            elif not source.startswith("./") and source not in document["volumes"]:
                wrong.append(f"compose: {name} uses unknown volume {source!r}")
    return wrong


def confined(name: str, service: dict[str, Any]) -> list[str]:
    """Return which rights a container has that none of ours needs."""
    wrong = []
    if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
        wrong.append(f"compose: {name} must be read_only with all capabilities dropped")
    # Without a word about seccomp the engine's own filter holds.
    if service.get("security_opt") != ["no-new-privileges:true"]:
        wrong.append(f"compose: {name}: security_opt must be no-new-privileges:true alone")
    user = str(service.get("user", "")).partition(":")[0]
    if not user.isdigit() or int(user) == 0:
        wrong.append(f"compose: {name} must run as a number that is not 0")
    if not service.get("pids_limit"):
        wrong.append(f"compose: {name} has no pids_limit")
    for rights in ("privileged", "cap_add", "pid", "ipc", "userns_mode", "extra_hosts"):
        if rights in service:
            wrong.append(f"compose: {name} asks for {rights}")
    if service.get("network_mode") not in (None, "service:tiled"):
        wrong.append(f"compose: {name}: network_mode {service['network_mode']!r}")
    if service.get("ports", []) != (["8443:8443"] if name == "tiled" else []):
        wrong.append(
            f"compose: {name} publishes {service.get('ports')}; only the proxy's TLS port may be"
        )
    for mount in service.get("tmpfs", []):
        if not {"noexec", "nosuid", "nodev"} <= set(mount.partition(":")[2].split(",")):
            wrong.append(f"compose: {name}: tmpfs {mount} without noexec,nosuid,nodev")
    for key, value in dict(service.get("environment") or {}).items():
        if _SECRET.search(f"{key}={value}") and not str(value).startswith("/run/secrets/"):
            wrong.append(f"compose: {name}: {key} holds a secret; name a file under /run/secrets")
    for volume in service.get("volumes", []):
        source, target = volume.split(":")[:2]
        if source.startswith("/") or "docker.sock" in volume:
            wrong.append(f"compose: {name} mounts {source} of the host")
        if name == "worker" and (source in ("state", "catalog") or target.endswith("/keys")):
            wrong.append(f"compose: the worker sees {source}, where keys are")
    if name == "worker" and service.get("secrets"):
        wrong.append("compose: the worker must hold no key of Tiled")
    return wrong


def unit(path: Path) -> list[str]:
    """Return what a systemd unit lacks of what confines it."""
    lines = [line for line in path.read_text().splitlines() if line and line[0] not in "#["]
    found: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition("=")
        found.setdefault(key, []).append(value)
    wanted = _UNIT | ({} if "worker" in path.name else {"PrivateDevices": ["yes"]})
    wrong = [
        f"{path.name}: {key}={value} is missing, found {found.get(key)}"
        for key, values in wanted.items()
        for value in values
        if value not in found.get(key, [])
    ]
    if found.get("User", ["root"]) in (["root"], ["0"]):
        wrong.append(f"{path.name} runs as root")
    for value in found.get("Environment", []):
        if _SECRET.search(value) and "_FILE=%d/" not in value:
            wrong.append(f"{path.name}: Environment={value[:40]}: units are for all to read")
    if "worker" in path.name and "LoadCredential" in found:
        wrong.append(f"{path.name}: a worker must hold no key of Tiled")
    return wrong


def main() -> int:
    """Print every fault; exit status 1 when there is one."""
    wrong = compose(HERE / "compose.yaml")
    for path in sorted(HERE.glob("Containerfile.*")):
        wrong += containerfile(path)
    for path in sorted((HERE / "systemd").glob("*.service")):
        wrong += unit(path)
    for name in ("service.yaml", "tiled.yaml"):
        yaml.safe_load((HERE / name).read_text())
    print("\n".join(wrong) or "Containerfiles, compose.yaml and units: ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
