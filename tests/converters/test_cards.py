"""Every published checkpoint's card says one thing, and what it says fits together."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.cards import NOT_STATED, PublishedCheckpoint, known_file, names, read_published
from converters.layouts import LAYOUTS
from converters.references import Hub, Web, parse
from zoo import files
from zoo.config import dump_yaml, read_yaml
from zoo.errors import ConfigError
from zoo.transforms import IMAGENET_PIXELS

NAMES = names()
CARDS = {name: read_published(name) for name in NAMES}
NAMED_BY_HASH = ("download.pytorch.org", "download.openmmlab.com")  # whose file names end in the hash's first digits
SPDX = {"Apache-2.0", "MIT", "CC-BY-NC-4.0"}


@pytest.fixture
def own_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """write(stem, **changes): a card in a folder of cards of this test's own."""
    monkeypatch.setattr(files, "CONFIGS", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    first = CARDS["supervised_r50_torchvision_v1"].model_dump(mode="json")

    def write(stem: str, **changes: object) -> None:
        (tmp_path / "checkpoints" / f"{stem}.yaml").write_text(dump_yaml({**first, "name": stem, **changes}))

    return write


def test_the_checkpoints_of_the_protocol_sheet_are_here() -> None:
    assert len(NAMES) > 60
    page = {"simsiam_r50_100e_b512_fb", "simsiam_r50_100e_b256_fb"}
    page |= {f"simsiam_r50_{epochs}e_mmselfsup{line}" for epochs in (100, 200) for line in (0, 1)}
    assert page <= set(NAMES)


@pytest.mark.parametrize("card", CARDS.values(), ids=NAMES)
def test_a_card_fits_together(card: PublishedCheckpoint) -> None:
    assert card.layout in LAYOUTS
    assert card.licence in SPDX | {NOT_STATED}
    reference = parse(card.name)
    assert reference.card == card and isinstance(reference.location, Web | Hub)
    said = re.search(r"-([0-9a-f]{8})\.pth$", card.url)
    assert card.sha256_prefix == (said[1] if said else None)
    assert bool(said) == any(host in card.url for host in NAMED_BY_HASH)
    assert card.pixels.mean == IMAGENET_PIXELS.mean and card.pixels.std[1:] == IMAGENET_PIXELS.std[1:]
    assert (card.pixels.std[0] == 0.228) == ("/deepcluster/" in card.url)
    if card.epochs is not None:
        assert re.search(rf"\b{card.epochs} epochs", card.title)


def test_no_two_cards_are_of_one_file_or_one_title() -> None:
    assert len({card.url for card in CARDS.values()}) == len({card.title for card in CARDS.values()}) == len(NAMES)


def test_published_tables_and_cards_name_the_same_files() -> None:
    shown = (files.CONFIGS / "published" / "facebook.yaml").read_text()
    shown += (files.CONFIGS / "published" / "mmpretrain.yaml").read_text()
    for name in ("simsiam_r50_100e_b512_fb", "simsiam_r50_100e_b256_fb", "simsiam_r50_200e_mmselfsup1"):
        assert f"({CARDS[name].url})" in shown


def test_torchvision_and_the_cards_agree() -> None:
    import torchvision

    for card in (card for name, card in CARDS.items() if "_torchvision_" in name):
        weights = torchvision.models.get_model_weights(card.arch)[f"IMAGENET1K_{card.name[-2:].upper()}"]
        assert card.url == weights.url
        assert card.pixels.mean == tuple(weights.transforms().mean) and card.pixels.std == tuple(
            weights.transforms().std
        )


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_timm_and_the_cards_agree() -> None:
    from timm.models import get_pretrained_cfg

    for card in (card for name, card in CARDS.items() if "_timm_" in name):
        config = get_pretrained_cfg(f"{card.arch}.a1_in1k")
        assert config is not None and card.url == f"hf://{config.hf_hub_id}/model.safetensors"
        assert (card.pixels.mean, card.pixels.std) == (config.mean, config.std)
        assert card.licence.lower() == config.license


def test_a_file_is_known_by_its_hash_or_the_beginning_of_it(own_cards: Callable[..., None]) -> None:
    own_cards("whole", sha256="a" * 64, sha256_prefix=None)
    own_cards("start", sha256=None, sha256_prefix="0676ba61")
    own_cards("unknown", sha256=None, sha256_prefix=None, md5_prefix="b251726a")
    found = {digits: known_file(digits) for digits in ("a" * 64, "0676ba61" + "0" * 56, "a" * 63 + "b", "b251726a" * 8)}
    assert [card and card.name for card in found.values()] == ["whole", "start", None, None]


def test_a_name_that_is_none_gets_near_ones() -> None:
    with pytest.raises(
        ConfigError, match="called 'simsiam_r50_100e'; did you mean .*simsiam_r50_100e_mmselfsup0"
    ) as got:
        read_published("simsiam_r50_100e")
    assert "'python -m converters published' lists them all" in str(got.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "b"}, "name: expected 'a', as the file is called, found 'b'"),
        ({"url": "http://a.org/b.pth"}, "a.yaml:7: url: string should match pattern"),
        ({"sha256": "0" * 64}, "sha256: expected it to begin with sha256_prefix, 0676ba61"),
        ({"arch": "resnet152"}, "a.yaml:5: arch: input should be 'resnet18'"),
        ({"licence": ""}, "licence: string should have at least 1 character"),
        ({"sha256_prefix": "0676BA61"}, "sha256_prefix: string should match pattern"),
        ({"stars": 5}, "stars: unknown key"),
    ],
)
def test_a_wrong_card_is_refused(own_cards: Callable[..., None], changes: dict[str, object], message: str) -> None:
    own_cards("a", **changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_published("a")


def test_a_card_is_written_as_it_is_read(own_cards: Callable[..., None]) -> None:
    own_cards("a")
    assert read_yaml(files.CONFIGS / "checkpoints" / "a.yaml")["url"] == read_published("a").url
