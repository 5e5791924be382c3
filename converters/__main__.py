"""python -m converters convert FILE --to canonical OUT_FOLDER"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from zoo.command import guarded
from zoo.files import ensure_writable, sha256_file
from zoo.transforms import IMAGENET_PIXELS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _main() -> None:
    """Convert checkpoints between layouts, checked tensor by tensor."""


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="a checkpoint file: .safetensors, .pth, .pt, .tar")],
    out: Annotated[Path, typer.Argument(help="the folder that gets backbone.safetensors and card.yaml")],
    to: Annotated[Literal["canonical"], typer.Option(help="the target layout")] = "canonical",
    name: Annotated[str | None, typer.Option(help="row label on the page; the file's name by default")] = None,
) -> None:
    """Read a checkpoint of any known layout, check that all of it is there, and write it with a card."""
    from converters.canonical import write_checkpoint  # torch: seconds that --help and a typing error need not wait
    from converters.read import read

    source_format, arch, state = read(file)
    ensure_writable(out)
    label = name or file.name.removesuffix(file.suffix)
    card = write_checkpoint(
        out,
        state,
        name=label,
        family=label,
        arch=arch,
        pixels=IMAGENET_PIXELS,
        source_format=source_format,
        lineage=(f"{file.name} (sha256 {sha256_file(file)}), read as {source_format}",),
    )
    typer.echo(
        "pixels: taken to be RGB with ImageNet's mean and std, as a weights file does not say; else edit card.yaml"
    )
    typer.echo(f"{arch}, {len(state)} tensors, {card.tensors_sha256[:16]}… -> {out}")


if __name__ == "__main__":
    guarded(app)
