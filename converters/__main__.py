"""python -m converters convert FILE OUT_FOLDER [--to canonical|detectron2|mmseg]"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zoo.checkpoint import CARD_NAME, read_card, verify_weights
from zoo.command import guarded
from zoo.files import ensure_writable, sha256_file, write_atomic
from zoo.transforms import IMAGENET_PIXELS, Pixels

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
PARITY_NAME = "parity.json"


@app.callback()
def _main() -> None:
    """Convert checkpoints between layouts, checked tensor by tensor."""


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="a checkpoint file (.safetensors, .pth, .pt, .tar), or a card's folder")],
    out: Annotated[Path, typer.Argument(help="the folder that gets the weights and what belongs to them")],
    to: Annotated[Literal["canonical", "detectron2", "mmseg"], typer.Option(help="the target layout")] = "canonical",
    name: Annotated[str | None, typer.Option(help="canonical: row label on the page; by default the file's")] = None,
    prove: Annotated[bool, typer.Option(help="engines: load the result in the engine and compare")] = True,
) -> None:
    """Read a checkpoint of any known layout, check that all of it is there, and write it in the target's layout."""
    source_format, arch, state, pixels = _read(file)
    ensure_writable(out)
    if to == "canonical":
        _write_canonical(file, out, source_format, arch, state, pixels, name)
    else:
        _write_for_engine(out, arch, state, pixels, to, prove=prove)


def _read(file: Path) -> tuple[str, str, Any, Pixels]:
    """(format, architecture, state, pixel statistics) of a checkpoint file, or of a folder with a card."""
    if (file / CARD_NAME).is_file() or file.name == CARD_NAME:
        from zoo.backbone import check_state, read_weights

        card = read_card(file)
        weights = verify_weights(file / CARD_NAME if file.is_dir() else file, card)
        state = read_weights(weights)
        check_state(state, card.arch, source=str(weights))
        return card.source_format, card.arch, state, card.pixels
    from converters.read import read  # torch: seconds that --help and a typing error need not wait

    source_format, arch, state = read(file)
    typer.echo(
        "pixels: taken to be RGB with ImageNet's mean and std, as a weights file does not say; else edit card.yaml"
    )
    return source_format, arch, state, IMAGENET_PIXELS


def _write_canonical(
    file: Path, out: Path, source_format: str, arch: str, state: Any, pixels: Pixels, name: str | None
) -> None:
    from converters.canonical import write_checkpoint

    label = name or file.name.removesuffix(file.suffix)
    weights = file if file.is_file() else file / CARD_NAME
    card = write_checkpoint(
        out,
        state,
        name=label,
        family=label,
        arch=arch,
        pixels=pixels,
        source_format=source_format,
        lineage=(f"{weights.name} (sha256 {sha256_file(weights)}), read as {source_format}",),
    )
    typer.echo(f"{arch}, {len(state)} tensors, {card.tensors_sha256[:16]}… -> {out}")


def _write_for_engine(
    out: Path, arch: str, state: Any, pixels: Pixels, to: Literal["detectron2", "mmseg"], *, prove: bool
) -> None:
    from converters.to_detectron2 import to_detectron2
    from converters.to_mmseg import to_mmseg
    from engines.launch import interpreter

    if prove:
        interpreter(to)  # installed? asked before anything is written
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


if __name__ == "__main__":
    guarded(app)
