"""What a reference means is clear, or said to be unclear; what is fetched is what was meant."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from converters import network
from converters.cards import read_published
from converters.download import Expected
from converters.references import Fetched, Hub, Local, Web, fetch, known, parse
from tests.converters.served import Page, Site, serving
from zoo import files
from zoo.config import dump_yaml
from zoo.errors import CheckpointError, ConfigError

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "c" * 40
HUB = "/timm/r/resolve/main/sub/model.safetensors"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(network, "BACK_OFF", 0.0)
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The Hugging Face Hub, on this machine, with one file."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    site.put(HUB, Page(BODY, etag=f'"{SHA256}"', headers={"X-Repo-Commit": COMMIT}))
    return site


def refused(text: str, kind: type[Exception] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        fetch(parse(text), progress=False)
    return str(caught.value)


@pytest.mark.parametrize("text", ["a.pth", "runs/x", "./simsiam", "/nowhere/card.yaml", "x.pth.tar", "a.torch"])
def test_a_path_is_a_path_whether_or_not_it_is_there(text: str) -> None:
    reference = parse(text)
    assert reference.location == Local(path=Path(text))
    assert reference.expected is None and reference.card is None
    assert refused(text, CheckpointError).startswith(
        f"{Path(text)}: no such file or folder; expected a checkpoint file"
    )


def test_a_file_and_a_folder_pass_through(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(BODY)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "card.yaml").write_text("name: a")
    assert fetch(parse("weights")) == Fetched(path=Path("weights"), sha256=SHA256, url=None, card=None)
    for own in ("folder", "folder/card.yaml"):
        assert fetch(parse(own)) == Fetched(path=Path(own), sha256=None, url=None, card=None)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("~/a.pth").location == Local(path=tmp_path / "a.pth")


def test_an_address_keeps_its_query_and_gives_up_its_hash() -> None:
    reference = parse(f"https://a.org/x/y.pth?download=1#sha256={SHA256.upper()}")
    assert reference.location == Web(url="https://a.org/x/y.pth?download=1")
    assert reference.expected == Expected(algorithm="sha256", digits=SHA256, said_by="the reference")


@pytest.mark.parametrize(
    ("url", "digits"),
    [
        ("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61"),
        ("https://a.org/simsiam_20220225-68a88ad8.pth?x=1-00000000.pth", "68a88ad8"),
        (f"https://a.org/model-{SHA256}.safetensors", SHA256),
        ("hf://a/b/sub/resnet18-f37072fd.pth", "f37072fd"),
        ("https://a.org/model-20220225.pth", None),
        ("https://a.org/model_0676ba61.pth", None),
        ("https://a.org/model-0676ba61/final.pth", None),
        ("https://a.org/0676ba61.pth", None),
        ("https://a.org/checkpoint_0099.pth.tar", None),
    ],
)
def test_a_files_name_may_say_its_hash(url: str, digits: str | None) -> None:
    expected = parse(url).expected
    assert (expected.digits if expected else None) == digits
    stated = parse(f"{url}#sha256=12345678").expected
    assert stated is not None and (stated.digits, stated.said_by) == ("12345678", "the reference")


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("hf://timm/r/model.safetensors", Hub(repo="timm/r", file="model.safetensors", revision=None)),
        ("hf://timm/r.a1_in1k/sub/m.pth@v1.0", Hub(repo="timm/r.a1_in1k", file="sub/m.pth", revision="v1.0")),
        ("hf://a/b/c@refs/pr/3", Hub(repo="a/b", file="c", revision="refs/pr/3")),
    ],
)  # fmt: skip
def test_a_file_on_the_hub(text: str, location: Hub) -> None:
    assert parse(text).location == location


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no such file, and no published checkpoint"),
        ("simsiam_r50_100e_mmselfsup", "did you mean simsiam_r50_100e_mmselfsup0"),
        ("resnet50", "no such file, and no published checkpoint"),
        ("http://a.org/b.pth", "http:// is for this machine only; expected https://"),
        ("ftp://a.org/b.pth", "'ftp://' is not understood"),
        ("s3://bucket/b.pth", "'s3://' is not understood"),
        ("file:///etc/passwd", "'file://' is not understood"),
        ("https://user:secret@a.org/b.pth", "an address with a password in it"),
        ("https://a.org/", "the address names no file"),
        ("https://a.org", "the address names no file"),
        ("https:///b.pth", "not a valid address"),
        ("https://a.org:port/b.pth", "not a valid address"),
        ("https://a.org/b c.pth", "not a valid address"),
        ("https://a.org/b.pth#md5=00000000", "after # expected sha256=HEX of 8 to 64 digits, found 'md5=00000000'"),
        ("https://a.org/b.pth#sha256=xyz", "after # expected sha256=HEX of 8 to 64 digits, found 'sha256=xyz'"),
        ("hf://timm/model.safetensors", "not an address of a file on the Hub"),
        ("hf://timm/r/../secret", "not an address of a file on the Hub"),
        ("hf://timm/r@main/model.pth", "not an address of a file on the Hub"),
    ],
)
def test_anything_else_is_refused_with_what_is_understood(text: str, problem: str) -> None:
    message = refused(text)
    assert message.startswith(f"'{text}': ") and problem in message
    assert all(way in message for way in ("a checkpoint file (", "https://HOST/PATH", "hf://ORG", "the name of a"))


def test_this_machine_may_be_asked_without_tls() -> None:
    assert parse("http://localhost:1/a.pth").location == Web(url="http://localhost:1/a.pth")
    assert parse("http://[::1]:1/a.pth").location == Web(url="http://[::1]:1/a.pth")


def test_a_published_name_brings_its_card_and_its_hash() -> None:
    reference = parse("simsiam_r50_100e_mmselfsup0")
    card = read_published("simsiam_r50_100e_mmselfsup0")
    assert reference.card == card and reference.location == Web(url=card.url)
    said_by = "configs/checkpoints/simsiam_r50_100e_mmselfsup0.yaml"
    assert reference.expected == Expected(algorithm="sha256", digits="68a88ad8", said_by=said_by)
    moco = parse("mocov2_r50_800e_fb").expected
    assert moco is not None and (moco.algorithm, moco.digits) == ("md5", "a04e12f8")
    hub = parse("supervised_r50_timm_a1")
    assert hub.location == Hub(repo="timm/resnet50.a1_in1k", file="model.safetensors", revision=None)


def test_a_published_name_goes_before_a_folder_of_that_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dino_r50_fb").mkdir()
    with caplog.at_level(logging.INFO):
        assert parse("dino_r50_fb").card is not None
    assert "./dino_r50_fb is what is called so here" in caplog.text
    assert parse("./dino_r50_fb").location == Local(path=Path("dino_r50_fb"))


def test_a_known_file_is_recognised_by_its_hash() -> None:
    card = known("0676ba61" + "0" * 56)
    assert card is not None and card.name == "supervised_r50_torchvision_v1"
    assert known(None) is None and known("0" * 64) is None


def test_an_address_is_fetched(site: Site) -> None:
    url = site.put(f"/a-{SHA256[:8]}.pth", Page(BODY))
    fetched = fetch(parse(url))
    assert (fetched.sha256, fetched.url, fetched.card) == (SHA256, url, None)
    assert fetched.path.name == f"a-{SHA256[:8]}.pth" and fetched.path.read_bytes() == BODY
    wrong = refused(site.put("/a-00000000.pth", Page(BODY)), CheckpointError)
    assert "expected sha256 00000000…, as the file's name (if its ending is no hash, say what the hash is" in wrong


def test_a_published_checkpoint_is_fetched_with_its_card(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = site.put("/a.pth", Page(BODY))
    card = read_published("mocov2_r50_800e_fb")
    own = card.model_copy(update={"name": "own", "md5_prefix": hashlib.md5(BODY).hexdigest()[:8]})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "own.yaml").write_text(dump_yaml(own.model_dump(mode="json")))
    monkeypatch.setattr(files, "CONFIGS", tmp_path)
    monkeypatch.setattr("converters.references.read_published", lambda name: own.model_copy(update={"url": url}))
    fetched = fetch(parse("own"))
    assert fetched.card is not None and fetched.card.name == "own" and fetched.path.read_bytes() == BODY
    source = json.loads((fetched.path.parent / "source.json").read_text())
    assert source["checked_by"] == "configs/checkpoints/own.yaml"


def test_a_file_of_the_hub_is_fetched_once(hub: Site) -> None:
    fetched = fetch(parse("hf://timm/r/sub/model.safetensors"))
    assert (fetched.sha256, fetched.card) == (SHA256, None)
    assert fetched.url == f"hf://timm/r/sub/model.safetensors@{COMMIT}"
    assert fetched.path.name == "model.safetensors" and fetched.path.read_bytes() == BODY
    asked = len(hub.requests)
    assert fetch(parse("hf://timm/r/sub/model.safetensors")) == fetched
    assert fetch(parse(fetched.url or "")) == fetched and len(hub.requests) == asked


def test_a_file_of_the_hub_has_the_hash_that_is_stated_and_that_of_its_tag(hub: Site) -> None:
    text = f"hf://timm/r/sub/model.safetensors#sha256={'0' * 64}"
    assert f"expected sha256 {'0' * 64}, as the reference says, found {SHA256}" in refused(text, CheckpointError)
    fetched = fetch(parse(f"hf://timm/r/sub/model.safetensors#sha256={SHA256}"))
    fetched.path.resolve().write_bytes(b"damaged")
    assert f"expected sha256 {SHA256}, as the Hub says" in refused("hf://timm/r/sub/model.safetensors", CheckpointError)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "no such repository, or a private one. Check 'https://huggingface.co/timm/r'"),
        (401, "RepoNotFound", "no such repository, or a private one"),
        (403, "GatedRepo", "its owner gives access on request only"),
        (404, "RevisionNotFound", "no branch, tag or commit of that name"),
        (404, "EntryNotFound", "the repository has no file of that name"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: Site, status: int, code: str, message: str) -> None:
    hub.put(HUB, Page(BODY, statuses=[status] * 9, headers={"X-Error-Code": code, "X-Repo-Commit": COMMIT}))
    said = refused("hf://timm/r/sub/model.safetensors", CheckpointError)
    assert said.startswith("hf://timm/r/sub/model.safetensors: ") and message in said


def test_without_a_network_only_what_is_here_comes_from_the_hub(hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    here = fetch(parse("hf://timm/r/sub/model.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(parse("hf://timm/r/sub/model.safetensors")) == here
    assert "the Hub cannot be reached, or HF_HUB_OFFLINE is set" in refused("hf://timm/r/other.pth", CheckpointError)
