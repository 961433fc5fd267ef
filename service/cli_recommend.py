"""`inscan recommend`: objects of a survey, grouped, and more like those that somebody points at."""

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from inscan.service.cli_answers import Json, State, TiledAddress, ask, print_json, print_rows, short


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(recommend)


def recommend(
    run: Annotated[str, typer.Argument(help="scan number, or uid (its first characters will do)")],
    like: Annotated[
        list[str] | None,
        typer.Option(
            "--like",
            metavar="NUMBER|ROW,COL",
            help="a wanted object: its number, or survey pixel (may be repeated)",
        ),
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(
            "--unlike", metavar="NUMBER|ROW,COL", help="one that is not (may be repeated)"
        ),
    ] = None,
    element: Annotated[
        list[str] | None,
        typer.Option(
            "--element",
            help="line whose counts outline the objects (may be repeated; default: all)",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=100, help="so many at most")] = 10,
    clusters: Annotated[
        int | None,
        typer.Option("--clusters", min=1, max=8, help="groups to make without --like"),
    ] = None,
    min_pixels: Annotated[
        int, typer.Option("--min-pixels", min=1, help="smaller objects are left out")
    ] = 8,
    factor: Annotated[
        float,
        typer.Option(
            "--factor",
            min=0.05,
            max=20.0,
            help="times Otsu's threshold; less finds fainter objects",
        ),
    ] = 1.25,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="draw the map with numbered boxes"),
    ] = None,
    propose: Annotated[
        bool,
        typer.Option("--propose", help="propose the recommended ones to be measured again"),
    ] = False,
    with_examples: Annotated[
        bool, typer.Option("--with-examples", help="propose those of --like as well")
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", help="why they are proposed; kept in the journal")
    ] = "",
    stream: Annotated[
        str | None, typer.Option(help="which of several maps of the run, as primary@2")
    ] = None,
    state: State = None,
    tiled: TiledAddress = None,
    as_json: Json = False,
) -> None:
    """Find objects in a survey's map, and more like those that --like names; without it, groups of them.

    Objects are cells, particles, whatever stands out in the elements. The score is roughly the probability that an
    object is of the same kind. With --propose they become a suggested proposal, which somebody must still approve.
    Exit status 1 where a limit refuses all of it.
    """
    if (propose or unlike or with_examples) and not like:
        raise ValueError("like what? name an object with --like")
    if with_examples and not propose:
        raise ValueError("--with-examples is for --propose")
    from inscan.service.recommend import alike, example, groups, survey_of
    from inscan.service.results import Results
    from inscan.service.settings import default_state_dir
    from inscan.service.show import tiled_of

    access = tiled_of(state or default_state_dir(), tiled)
    with Results(access.uri, access.api_key) as results:
        shown = results.read(results.latest(run, stream))
    survey = survey_of(shown, elements=element or (), min_pixels=min_pixels, factor=factor)
    answer: dict[str, Any] = {
        "raw_uid": shown.start["raw_uid"],
        "scan_id": shown.start.get("scan_id"),
        "result_uid": shown.start["uid"],
        "verdict": shown.start.get("verdict"),
        "outlined_by": list(survey.outlined_by),
        "source": survey.source,
        "objects": len(survey.objects),
        "threshold": survey.objects.threshold,
    }
    wanted = [example(survey, one) for one in like or ()]
    unwanted = [example(survey, one) for one in unlike or ()]
    if wanted:
        rows = alike(survey, wanted, unwanted, top=top)
        answer |= {"like": wanted, "unlike": unwanted, "recommended": rows}
    else:
        rows = groups(survey, clusters=clusters, top=min(top, 5))
        answer |= {
            "groups": rows,
            "all": [survey.described(number) for number in range(1, len(survey.objects) + 1)],
        }
    if picture is not None:
        from inscan.service.recommend_picture import draw_alike, draw_groups

        drawn = (
            draw_alike(survey, rows, wanted, unwanted, picture)
            if wanted
            else draw_groups(survey, rows, picture)
        )
        answer["picture"] = str(drawn)
    if propose:
        asked = _places(survey, rows, wanted, with_examples)
        sent = {"run_uid": shown.start["raw_uid"], "places": asked, "who": getpass.getuser()}
        answer["proposal"] = ask(state, "propose_places", reason=reason, **sent)["proposal"]
    if as_json:
        print_json(answer)
    else:
        _print(survey, answer)
    if propose and answer["proposal"].get("state") == "refused":
        raise typer.Exit(1)


def _places(
    survey: Any, rows: list[dict[str, Any]], wanted: list[int], with_examples: bool
) -> list[dict[str, Any]]:
    from inscan.service.recommend import places

    chosen = list(rows)
    if with_examples:
        named = {"score": 1.0, "reason": "pointed at", "element_name": rows[0]["element_name"]}
        chosen = [survey.described(number) | named for number in wanted] + chosen
    return places(survey, chosen, wanted)


def _print(survey: Any, answer: dict[str, Any]) -> None:
    scan = answer["scan_id"]
    name = f"scan {scan}, run {answer['raw_uid']}" if scan is not None else answer["raw_uid"]
    outlined = " + ".join(answer["outlined_by"])
    text = f"{name}: {answer['objects']} objects, outlined by {outlined}"
    if answer["source"] == "raw":
        text += " (raw: the result's verdict is block)"
    typer.echo(short(text))
    if "recommended" in answer:
        _print_alike(survey, answer)
    else:
        _print_groups(answer["groups"])
    if "picture" in answer:
        typer.echo(f"picture: {answer['picture']}")
    if "proposal" in answer:
        from inscan.service.proposal_text import brief

        made = answer["proposal"]
        typer.echo(short(f"proposal {made['id']}: {made['state']} ({made['reason']})"))
        if made["state"] == "suggested":
            typer.echo(f"{brief(made)}; `inscan approve {made['id'][:8]}` lets it be taken")


def _print_alike(survey: Any, answer: dict[str, Any]) -> None:
    geometry = survey.geometry
    typer.echo(f"like: {_numbers(answer['like'])}")
    if answer["unlike"]:
        typer.echo(f"unlike: {_numbers(answer['unlike'])}")
    rows = [
        {
            **row,
            "score": f"{row['score']:.2f}",
            "place": f"{row['row']:.0f}, {row['col']:.0f}",
            "motors": f"{row['slow']:.5g}, {row['fast']:.5g}",
        }
        for row in answer["recommended"]
    ]
    motors = f"{geometry.slow_motor}, {geometry.fast_motor} ({geometry.slow_units})"
    columns = {"rank": "rank", "object": "object", "score": "score", "row, col": "place"}
    print_rows("recommended object", rows, columns | {motors: "motors", "why": "reason"})


def _print_groups(rows: list[dict[str, Any]]) -> None:
    table = [
        {
            **row,
            "count": len(row["objects"]),
            "typical": _numbers([one["object"] for one in row["typical"]]),
            "rarest": _numbers([one["object"] for one in row["rarest"]]),
        }
        for row in rows
    ]
    columns = {"group": "group", "objects": "count", "what": "reason"}
    print_rows("group", table, columns | {"most typical": "typical", "rarest": "rarest"})
    typer.echo("more of a kind: inscan recommend RUN --like NUMBER; --picture FILE.png shows them")


def _numbers(numbers: list[int]) -> str:
    return ", ".join(str(one) for one in numbers)
