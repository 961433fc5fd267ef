"""`inscan config`: the keys of settings and profiles, explained and checked."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Settings and profiles: schema, explain, check.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

What = Annotated[
    str,
    typer.Argument(
        help="settings (of `inscan serve`) or profile (of a beamline)", metavar="settings|profile"
    ),
]


def _which(what: str) -> Literal["settings", "profile"]:
    if what == "settings":
        return "settings"
    if what == "profile":
        return "profile"
    raise ValueError(f"no configuration named {what!r}: say settings or profile")


@app.command()
def schema(what: What = "settings") -> None:
    """Print the JSON schema, for editors that check YAML while one types."""
    from inscan.callbacks.profile import profile_schema
    from inscan.service.settings import Settings

    document = Settings.model_json_schema() if _which(what) == "settings" else profile_schema()
    typer.echo(json.dumps(document, indent=2))


@app.command()
def explain(what: What = "settings") -> None:
    """Print every key with its type, default and meaning."""
    from inscan.callbacks.profile import BeamlineProfile, explain_model
    from inscan.service.settings import Settings

    typer.echo(explain_model(Settings if _which(what) == "settings" else BeamlineProfile))


@app.command()
def check(path: Annotated[Path, typer.Argument(help="a settings or profile file")]) -> None:
    """Check a settings or profile file; the profiles that settings name are checked with it, and the files that
    profiles name."""
    from inscan.callbacks.profile import BeamlineProfile, load_profile
    from inscan.callbacks.yaml_file import YamlError, read_yaml
    from inscan.service.settings import load_settings
    from inscan.service.shelf import read_weights_file

    def files_of(profile: BeamlineProfile) -> None:
        profile.references()
        if (weights := profile.weights_file()) is not None:
            read_weights_file(weights)

    try:
        content = read_yaml(path)
    except YamlError as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if isinstance(content, dict) and "technique" in content:
        profile = load_profile(path)
        files_of(profile)
        typer.echo(f"{path}: profile {profile.name!r} ({profile.technique}) is good")
        return
    settings = load_settings(path)
    for name in settings.profiles:
        files_of(load_profile(name))
    typer.echo(f"{path}: settings are good; profiles: {', '.join(settings.profiles)}")
