"""python -m converters inspect REFERENCE | convert REFERENCE OUT_FOLDER --to TARGET | verify A [B] | published"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from converters import references
from converters.cards import names, read_published
from zoo.checkpoint import CARD_NAME, read_card
from zoo.command import guarded
from zoo.errors import CheckpointError, ConfigError, several
from zoo.files import ensure_writable, write_atomic
from zoo.transforms import Pixels

if TYPE_CHECKING:  # torch: seconds that --help and a typing error need not wait
    from converters.intake import Taken

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
PARITY_NAME = "parity.json"
REFERENCE = "a checkpoint file, a card's folder, an https:// or hf:// address, or a name of `converters published`"
Reference = Annotated[str, typer.Argument(metavar="REFERENCE", help=REFERENCE)]
Take = Annotated[
    str | None,
    typer.Option(help="WHERE:PREFIX of the backbone in a file of unknown layout; inspect shows what there is"),
]
Target = Literal[
    "canonical", "torchvision", "timm", "mmpretrain", "simsiam", "mmselfsup0", "mmselfsup1", "detectron2", "mmseg"
]


@app.callback()
def _main() -> None:
    """Take in checkpoints of any known layout, show what is in them, and convert them, checked tensor by tensor."""


@app.command()
def inspect(
    reference: Reference,
    take: Take = None,
    as_json: Annotated[bool, typer.Option("--json", help="all of it, as JSON")] = False,
) -> None:
    """Say what a checkpoint is and whether all of it is there; nothing is computed or written. Exit code 2 if not."""
    fetched = references.fetch(references.parse(reference))
    path = fetched.path
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        card_path = path / CARD_NAME if path.is_dir() else path
        path = card_path.parent / read_card(card_path).weights
    from converters.inspect import describe, lines

    found = describe(path, take)
    if fetched.card is not None and "layout" in found:
        if (found["layout"], found["arch"]) != (fetched.card.layout, fetched.card.arch):
            found["problems"].append(f"{fetched.card.name} says {fetched.card.arch} in layout {fetched.card.layout}")
    entry = fetched.card or references.known(found.get("sha256"))
    found |= {"licence": entry.licence if entry else None, "published_as": entry.name if entry else None}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for line in lines(found):
            typer.echo(line)
    if found["problems"]:
        raise CheckpointError(several(f"{path}: {found['problems'][0]}", found["problems"][1:]))
    if not as_json:
        typer.echo(
            f"every tensor is accounted for; next: python -m evaluate run --checkpoint {reference} --benchmark NAME"
        )


@app.command()
def convert(
    reference: Reference,
    out: Annotated[Path, typer.Argument(help="the folder that gets the weights and what belongs to them")],
    to: Annotated[Target, typer.Option(help="the target layout")] = "canonical",
    name: Annotated[str | None, typer.Option(help="canonical: row label on the page; by default the file's")] = None,
    family: Annotated[str | None, typer.Option(help="canonical: the recipe; by default what is known, or NAME")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="canonical: completed ones, where no one says")] = None,
    take: Take = None,
    mean: Annotated[
        str | None, typer.Option(help="R,G,B in [0, 1] that the checkpoint's pixels were normalised by")
    ] = None,
    std: Annotated[str | None, typer.Option(help="R,G,B, with --mean")] = None,
    prove: Annotated[bool, typer.Option(help="engines: load the result in the engine and compare")] = True,
) -> None:
    """Read a checkpoint, check that all of it is there, and write it in the target's layout."""
    pixels = stated_pixels(mean, std)
    from converters.intake import take_in

    taken = take_in(reference, name=name, take=take, pixels=pixels)
    taken = replace(taken, family=family or taken.family, epochs=taken.epochs if epochs is None else epochs)
    if taken.pixels_from == "assumed":
        typer.echo("pixels: taken to be RGB with ImageNet's mean and std, as the file does not say; else --mean, --std")
    ensure_writable(out)
    if to == "canonical":
        card = taken.write(out)
        typer.echo(f"{card.arch}, {len(taken.state)} tensors, {card.tensors_sha256[:16]}… -> {out}")
    elif to in ("detectron2", "mmseg"):
        _write_for_engine(out, taken, to, prove=prove)
    else:
        typer.echo(f"{taken.arch}, {len(taken.state)} tensors of the backbone -> {_write(out, taken, to)}")


def stated_pixels(mean: str | None, std: str | None) -> Pixels | None:
    """--mean and --std as pixel statistics; None when neither is given. Raises ConfigError."""
    if mean is None and std is None:
        return None
    try:
        values = [[float(part) for part in (text or "").split(",")] for text in (mean, std)]
        return Pixels.model_validate({"mean": values[0], "std": values[1], "order": "rgb"}, strict=False)
    except ValueError:
        raise ConfigError(
            f"--mean, --std: expected both, each three numbers like 0.485,0.456,0.406, found {mean} and {std}."
        ) from None


def _write(out: Path, taken: "Taken", to: str) -> Path:
    from converters import full_models, to_mmpretrain, to_torchvision

    if to == "torchvision":
        return to_torchvision.to_torchvision(out, taken.state, taken.arch)
    if to == "timm":
        return to_torchvision.to_timm(out, taken.state, taken.arch)
    if to == "mmpretrain":
        return to_mmpretrain.to_mmpretrain(out, taken.state, taken.arch, taken.pixels)
    if taken.checkpoint is None:
        raise CheckpointError(
            f"--to {to}: expected a file with SimSiam's heads, found a card, which has a backbone only."
        )
    writer = {
        "simsiam": full_models.to_simsiam,
        "mmselfsup0": full_models.to_mmselfsup0,
        "mmselfsup1": full_models.to_mmselfsup1,
    }
    return writer[to](out, taken.checkpoint)


def _write_for_engine(out: Path, taken: "Taken", to: Literal["detectron2", "mmseg"], *, prove: bool) -> None:
    from converters.to_detectron2 import to_detectron2
    from converters.to_mmseg import to_mmseg
    from engines.launch import interpreter

    if prove:
        interpreter(to)  # installed? asked before anything is written
    state, arch, pixels = taken.state, taken.arch, taken.pixels
    path = {"detectron2": to_detectron2, "mmseg": to_mmseg}[to](out, state, arch, pixels)
    typer.echo(f"{arch}, {len(state)} tensors -> {path}, and the settings they need beside it")
    if prove:
        from converters.parity import parity

        found = parity(to, state, arch, pixels)
        write_atomic(out / PARITY_NAME, json.dumps(found, indent=1) + "\n")
        for place, proof in found.items():
            stages = {key: max(proof["largest_difference"][key].values()) for key in ("fp32", "fp64")}
            typer.echo(
                f"{place}: {proof['tensors']} tensors bit for bit; largest difference of a stage: "
                f"{stages['fp32']:.2g} in fp32, {stages['fp64']:.2g} in fp64"
            )


@app.command()
def verify(
    reference: Reference,
    other: Annotated[str | None, typer.Argument(metavar="[OTHER]", help="a second checkpoint, of any layout")] = None,
) -> None:
    """Check a checkpoint, tensors against its card's hash; or that two hold the same backbone, bit for bit."""
    from converters.intake import take_in
    from converters.read import differences
    from zoo.backbone import fingerprint

    first = take_in(reference)
    if other is None:
        typer.echo(f"{first.arch}, {len(first.state)} tensors, whole and finite: {fingerprint(first.state)}")
        return
    second = take_in(other)
    if first.arch != second.arch:
        raise CheckpointError(f"not the same: {reference} is a {first.arch}, {other} a {second.arch}.")
    if fingerprint(first.state) == fingerprint(second.state):
        typer.echo(f"the same {first.arch}, bit for bit: {fingerprint(first.state)}")
        return
    problems = differences(first.state, second.state)
    raise CheckpointError(
        several(f"not the same: {len(problems)} tensors of {reference} and {other} differ:", problems[:10])
    )


@app.command()
def published() -> None:
    """List the published checkpoints that can be named: configs/checkpoints/."""
    for name in names():
        entry = read_published(name)
        typer.echo(f"{name:<32} {entry.arch}, {entry.method}; weights: {entry.licence}; {entry.url}")


if __name__ == "__main__":
    guarded(app)
