"""A download is whole and what it must be, or an error that says what to do; nothing that has come is fetched twice."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from converters import download as downloads
from converters import network
from converters.download import SOURCE_NAME, Expected, digest_of, download, file_name, folder_of
from tests.converters.served import Page, Site, serving
from zoo.errors import CheckpointError, ZooError
from zoo.files import ROOT

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
RIGHT = Expected(algorithm="sha256", digits=SHA256[:8], said_by="the file's name")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(network, "BACK_OFF", 0.0)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache on a file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and the right to mount")
    monkeypatch.setenv("ZOO_CACHE", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def got(url: str, expected: Expected | None = RIGHT) -> bytes:
    path, sha256 = download(url, expected, progress=True)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    return path.read_bytes()


def refused(url: str, expected: Expected | None = RIGHT) -> str:
    with pytest.raises(CheckpointError) as caught:
        download(url, expected, progress=True)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_says_where_it_is_from(site: Site) -> None:
    url = site.put("/a/resnet.pth", Page(BODY))
    assert got(url) == BODY
    assert names(folder_of(url)) == [".lock", "resnet.pth", SOURCE_NAME]
    source = json.loads((folder_of(url) / SOURCE_NAME).read_text())
    assert (source["url"], source["final_url"], source["sha256"], source["size"]) == (url, url, SHA256, len(BODY))
    assert (source["etag"], source["checked_by"]) == ('"v1"', "the file's name")


def test_what_is_here_needs_no_network(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY))
    got(url)
    site.pages.clear()
    assert got(url) == BODY and got(url, None) == BODY and len(site.requests) == 1


def test_a_broken_download_goes_on_where_it_ended(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY, breaks=[100_000, 50_000]))
    assert got(url) == BODY
    assert site.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert site.requests[1][1]["If-Range"] == '"v1"'


def test_a_modification_date_does_where_there_is_no_strong_tag(site: Site) -> None:
    date = "Tue, 01 Feb 2022 10:00:00 GMT"
    url = site.put("/a.pth", Page(BODY, etag='W/"1"', last_modified=date, breaks=[1000]))
    assert got(url) == BODY
    assert site.ranges == [None, "bytes=1000-"] and site.requests[1][1]["If-Range"] == date


def test_without_tag_or_date_it_starts_over(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY, etag=None, breaks=[1000]))
    assert got(url) == BODY and site.ranges == [None, None]


def test_a_server_that_ignores_ranges_sends_it_all_again(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY, ranges=False, breaks=[1000]))
    assert got(url) == BODY and site.ranges == [None, "bytes=1000-"]


def test_two_versions_of_a_file_are_not_joined(site: Site) -> None:
    url = site.put("/a.pth", Page(b"x" * 5000, etag='"old"', breaks=[1000, 0, 0, 0, 0, 0]))
    assert "the same command goes on from there" in refused(url)
    site.put("/a.pth", Page(BODY, etag='"new"', breaks=[0, 500]))
    assert got(url) == BODY and site.ranges[-3:] == ["bytes=1000-", None, "bytes=500-"]


def test_the_next_command_goes_on_from_what_is_kept(site: Site) -> None:
    page = Page(BODY, breaks=[7000, 0, 0, 0, 0, 0])
    url = site.put("/a.pth", page)
    message = refused(url)
    assert message.startswith(f"{url}: ") and "5 tries in a row brought nothing new" in message
    assert "7,000 bytes are kept; the same command goes on from there." in message
    page.breaks = []
    assert got(url) == BODY and site.ranges[-1] == "bytes=7000-"
    assert not list(folder_of(url).glob("*.partial*"))


def test_more_kept_than_there_is_starts_over(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY, breaks=[9000, 0, 0, 0, 0, 0]))
    refused(url)
    site.put("/a.pth", Page(BODY[:4000]))
    expected = Expected(algorithm="sha256", digits=hashlib.sha256(BODY[:4000]).hexdigest(), said_by="a test")
    assert got(url, expected) == BODY[:4000]


def test_a_killed_process_leaves_what_came_and_its_successor_goes_on(site: Site, tmp_path: Path) -> None:
    page = Page(BODY, drip=200_000)
    url = site.put("/a.pth", page)
    program = f"from converters.download import download\ndownload({url!r}, None, progress=False)"
    partial = folder_of(url) / "a.pth.partial"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    limit = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size > 100_000):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    kept = partial.stat().st_size
    page.go_on.set()
    assert got(url) == BODY
    assert site.ranges == [None, f"bytes={kept}-"] and 0 < kept <= 200_000


def test_two_at_once_download_once(site: Site) -> None:
    page = Page(BODY, drip=1000)
    url = site.put("/a.pth", page)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(got, url) for _ in range(2)]
        time.sleep(0.1)
        page.go_on.set()
        assert [one.result() for one in both] == [BODY, BODY]
    assert len(site.requests) == 1


@pytest.mark.parametrize(("algorithm", "digits"), [("sha256", "0" * 64), ("sha256", "0676ba61"), ("md5", "b251726a")])
def test_other_bytes_than_expected_are_removed(site: Site, algorithm: str, digits: str) -> None:
    url = site.put("/a.pth", Page(BODY))
    expected = Expected(algorithm="md5" if algorithm == "md5" else "sha256", digits=digits, said_by="card.yaml")
    message, found = refused(url, expected), hashlib.new(algorithm, BODY).hexdigest()
    assert f"expected {algorithm} {digits}" in message and f"as card.yaml says, found {found}." in message
    assert "The 256,000 bytes that came were removed." in message
    assert names(folder_of(url)) == [".lock"]


def test_an_md5_that_fits_is_enough(site: Site) -> None:
    url, page = site.url + "/a.pth", Page(BODY)
    site.put("/a.pth", page)
    expected = Expected(algorithm="md5", digits=hashlib.md5(BODY).hexdigest()[:8], said_by="its page")
    assert got(url, expected) == BODY and got(url, expected) == BODY and len(site.requests) == 1


def test_what_is_here_is_held_against_a_hash_that_is_stated_later(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY))
    got(url, None)
    message = refused(url, Expected(algorithm="sha256", digits="0" * 64, said_by="the reference"))
    assert (
        f"downloaded earlier from {url}: expected sha256 {'0' * 64}, as the reference says, found {SHA256}." in message
    )
    assert f"remove {folder_of(url)} to download it anew" in message


def test_a_file_that_was_changed_here_is_refused(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY))
    got(url)
    path = folder_of(url) / "a.pth"
    path.write_bytes(b"other")
    message = refused(url)
    assert message.startswith(f"{path}: expected sha256 {SHA256}, as it was downloaded") and "Remove it" in message
    path.unlink()
    assert got(url) == BODY


def test_without_a_stated_hash_the_found_one_is_said_and_remembered(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    url = site.put("/a.pth", Page(BODY))
    got(url, None)
    assert (
        f"nobody says what its sha256 must be; found {SHA256}" in caplog.text
        and f"{url}#sha256={SHA256}" in caplog.text
    )
    (folder_of(url) / "a.pth").unlink()
    site.put("/a.pth", Page(b"another"))
    message = refused(url, None)
    assert (
        f"expected sha256 {SHA256}, as at an earlier download" in message and "another file lies there now" in message
    )
    stated = Expected(algorithm="sha256", digits=hashlib.sha256(b"another").hexdigest(), said_by="the reference")
    assert got(url, stated) == b"another"


@pytest.mark.parametrize("length", [len(BODY) + 10, 0])
def test_a_wrong_length_is_a_broken_connection_and_none_is_taken_as_it_comes(site: Site, length: int) -> None:
    url = site.put("/a.pth", Page(BODY, length=length, ranges=False))
    if length:
        assert "5 tries in a row brought nothing new" in refused(url)
    else:
        assert got(url) == BODY


def test_a_length_that_is_too_short_fails_by_the_hash(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY, length=1000))
    assert "The 1,000 bytes that came were removed" in refused(url)


def test_an_empty_file_is_refused(site: Site) -> None:
    assert refused(site.put("/a.pth", Page(b""))).endswith("the file there is empty.")


def test_redirects_are_followed_and_the_name_is_that_of_the_reference(site: Site) -> None:
    url = site.put("/a.pth", Page(location="/b"))
    site.put("/b", Page(location=f"{site.url}/c"))
    site.put("/c", Page(BODY, breaks=[1000]))
    assert got(url) == BODY
    source = json.loads((folder_of(url) / SOURCE_NAME).read_text())
    assert (source["file"], source["final_url"]) == ("a.pth", f"{site.url}/c")


def test_a_loop_of_redirects_ends(site: Site) -> None:
    url = site.put("/a.pth", Page(location="/a.pth"))
    assert f"redirected more than 5 times, last to {url}" in refused(url) and len(site.requests) == 6


@pytest.mark.parametrize("target", ["http://example.org/a.pth", "ftp://example.org/a.pth", "file:///etc/passwd"])
def test_nothing_but_https_is_followed_elsewhere(site: Site, target: str) -> None:
    message = refused(site.put("/a.pth", Page(location=target)))
    assert f"it is redirected to {target}; expected https" in message


def test_https_never_leads_to_this_machine_without_tls(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    secret = site.put("/secret", Page(BODY))
    answer = httpx2.Response(302, headers={"location": secret})
    client = httpx2.Client(transport=httpx2.MockTransport(lambda request: answer))
    monkeypatch.setattr(network, "_client", lambda: client)
    assert f"it is redirected to {secret}; expected https" in refused("https://example.org/a.pth")
    assert site.requests == []


@pytest.mark.parametrize(
    ("status", "why"),
    [(404, "404 Not Found: no such file is there"), (403, "withdrawn, or wants a login"), (451, "expected 200")],
)
def test_a_refusal_is_final_and_says_what_to_do(site: Site, status: int, why: str) -> None:
    message = refused(site.put("/a.pth", Page(BODY, statuses=[status] * 9)))
    assert why in message and "download the file by hand and give its path" in message and len(site.requests) == 1


def test_a_servers_bad_moment_is_waited_for(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY, statuses=[503, 429]))
    assert got(url) == BODY and len(site.requests) == 3
    bad = site.put("/b.pth", Page(BODY, statuses=[500] * 9))
    assert "the server answered 500 Internal Server Error. 5 tries" in refused(bad)


@pytest.mark.parametrize(
    "page",
    [
        Page(BODY, content_type="text/html; charset=utf-8"),
        Page(b"\n<!DOCTYPE html><html>sign in"),
        Page(b"<html><body>quota exceeded"),
    ],
)
def test_a_web_page_is_no_checkpoint(site: Site, page: Page) -> None:
    url = site.put("/a.pth", page)
    assert f"{url}: expected a checkpoint file, found a web page" in refused(url)


def test_a_pointer_to_a_large_file_is_no_checkpoint(site: Site) -> None:
    body = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    assert "a Git LFS pointer" in refused(site.put("/a.pth", Page(body)))


def test_compressed_transfer_is_refused(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY, headers={"Content-Encoding": "gzip"}))
    assert "found them sent compressed (gzip)" in refused(url)


def test_no_network_is_said(tmp_path: Path) -> None:
    with serving() as gone:
        url = gone.url + "/a.pth"
    message = refused(url)
    assert "ConnectError" in message and "is the network up?" in message


def test_a_full_disk_is_foreseen_and_where_it_is_not_what_came_is_kept(site: Site, small_disk: Path) -> None:
    url = site.put("/a.pth", Page(BODY * 3))
    assert "expected 768,000 bytes of free space" in refused(url)
    blind = site.put("/b.pth", Page(BODY * 3, length=0))
    message = refused(blind)
    assert "No space left on device after" in message and "what has come is kept" in message


def test_a_cache_that_became_read_only_is_read(site: Site, small_disk: Path) -> None:
    url = site.put("/a.pth", Page(BODY))
    got(url)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    site.pages.clear()
    assert got(url) == BODY
    with pytest.raises(ZooError, match="Read-only file system.*set ZOO_RUNS or ZOO_CACHE"):
        download(site.url + "/other.pth", None, progress=False)


def test_an_unreadable_record_is_said(site: Site) -> None:
    url = site.put("/a.pth", Page(BODY))
    got(url)
    (folder_of(url) / SOURCE_NAME).write_text("{}")
    assert "source.json: not readable" in refused(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.org/x/resnet50-0676ba61.pth", "resnet50-0676ba61.pth"),
        ("https://a.org/checkpoint_0099.pth.tar?download=1", "checkpoint_0099.pth.tar"),
        ("https://a.org/..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("https://a.org/%2e%2e", "checkpoint"),
        ("https://a.org/ä b;c.pth", "__b_c.pth"),
        ("https://a.org/source.json", "file_source.json"),
        ("https://a.org/a.partial", "file_a.partial"),
        ("https://a.org/" + "a" * 300 + ".pth", "a" * 146 + ".pth"),
    ],
)
def test_an_address_gives_a_safe_name(url: str, name: str) -> None:
    assert file_name(url) == name


def test_a_log_gets_a_line_now_and_then(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(downloads, "LINE_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        got(site.put("/a.pth", Page(BODY)))
    assert "a.pth: 0.3 of 0.3 MB" in caplog.text and "256,000 bytes, sha256 as the file's name says" in caplog.text


def test_a_terminal_gets_a_bar(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert got(site.put("/a.pth", Page(BODY))) == BODY
    assert capsys.readouterr().out == ""


def test_a_hash_is_found_where_the_ledger_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(BODY)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "a" / "no folder"))
    assert digest_of(tmp_path / "a") == SHA256
