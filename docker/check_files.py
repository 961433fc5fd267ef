"""Check the container files without an engine: syntax, pinned images, no root, and that every file they name exists."""

import io
import sys
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


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
    if not users or users[-1] in ("root", "0"):
        wrong.append(f"{path.name}: the final stage runs as root")
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
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
            wrong.append(f"compose: {name} must be read_only with all capabilities dropped")
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


def main() -> int:
    """Print every fault; exit status 1 when there is one."""
    wrong = compose(HERE / "compose.yaml")
    for path in sorted(HERE.glob("Containerfile.*")):
        wrong += containerfile(path)
    for name in ("service.yaml", "tiled.yaml"):
        yaml.safe_load((HERE / name).read_text())
    print("\n".join(wrong) or "Containerfiles and compose.yaml: ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
