"""Downloads from a server that misbehaves: the file on disk is right, or there is none and an error with the reason."""

import builtins
import errno
import hashlib
import io
import itertools
import multiprocessing
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mirror_server import (
    MirrorServer,
    dropped_after,
    html_page,
    send,
    stalled_after,
    whole,
    without_ranges,
)

from tinyvit.data import download, fetch, load_dataset
from tinyvit.data.sources import DATASET_NAMES, GENERATED, SOURCES, RemoteFile, Source, data_roots, find, missing_names
from tinyvit.errors import DataError

BODY = random.Random(0).randbytes(320_000)
PATH = "/file.bin"


@pytest.fixture
def target(cache: Path, offer, mirror: MirrorServer) -> Path:
    offer([mirror.url], **{"file.bin": BODY})
    return cache / "mnist" / "file.bin"


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_a_good_server_is_asked_once(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = whole(BODY)
    assert fetch("mnist") == target.parent
    assert target.read_bytes() == BODY
    assert mirror.requests == [(PATH, None)]
    assert not part_of(target).exists()


def test_a_terminal_sees_a_bar_and_a_log_file_does_not(
    target: Path, mirror: MirrorServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.answers[PATH] = whole(BODY)
    fetch("mnist")
    assert capsys.readouterr() == ("", "")
    target.unlink()
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats every output as a terminal
    fetch("mnist")
    output, errors = capsys.readouterr()
    assert output == ""
    assert "file.bin" in errors


def test_a_correct_file_is_not_downloaded_again(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = whole(BODY)
    fetch("mnist")
    fetch("mnist")
    assert len(mirror.requests) == 1


def test_a_damaged_file_is_replaced(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = whole(BODY)
    target.parent.mkdir(parents=True)
    target.write_bytes(BODY[:-1] + b"?")
    fetch("mnist")
    assert target.read_bytes() == BODY


def test_a_dropped_connection_is_resumed_where_it_broke(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = dropped_after(150_000, BODY)
    fetch("mnist")
    assert target.read_bytes() == BODY
    assert [asked for _, asked in mirror.requests] == [None, "bytes=150000-", "bytes=300000-"]


def test_a_server_without_ranges_is_read_from_the_start(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = [dropped_after(1000, BODY), without_ranges(BODY)]
    fetch("mnist")
    assert target.read_bytes() == BODY
    assert mirror.requests[1] == (PATH, "bytes=1000-")


def test_a_download_of_an_earlier_run_is_continued(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = whole(BODY)
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(BODY[:70_000])
    fetch("mnist")
    assert target.read_bytes() == BODY
    assert mirror.requests == [(PATH, "bytes=70000-")]


@pytest.mark.parametrize("stale", [b"of another file", b"x" * len(BODY), b"x" * (len(BODY) + 7)])
def test_a_partial_file_with_other_content_is_deleted(target: Path, mirror: MirrorServer, stale: bytes) -> None:
    mirror.answers[PATH] = whole(BODY)
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(stale)
    fetch("mnist")
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: handler.send_error(404), "HTTP status 404"),
        (lambda handler: handler.send_error(503), "HTTP status 503"),
        (html_page, "HTML page"),
        (lambda handler: send(handler, b"short"), "it sent 5 bytes"),
        (lambda handler: send(handler, BODY[:9], length=len(BODY)), "closed after 9 of 320,000 bytes"),
        (lambda handler: send(handler, b"!" * len(BODY)), "SHA-256"),
        (lambda handler: send(handler, b"", status=204), "HTTP status 204"),
        (lambda handler: send(handler, BODY[5:], status=206, Content_Range="bytes 5-9/10"), "bytes 5-9/10"),
        (lambda handler: handler.wfile.write(b"not http\r\n\r\n"), "not http"),
    ],
    ids=["404", "503", "html", "short", "truncated", "checksum", "204", "range", "not-http"],
)
def test_a_bad_mirror_is_skipped_and_named_if_no_other_is_left(
    cache: Path, offer, mirror: MirrorServer, answer, reason: str
) -> None:
    mirror.answers["/bad/file.bin"] = answer
    mirror.answers["/good/file.bin"] = whole(BODY)
    target = cache / "mnist" / "file.bin"
    offer([f"{mirror.url}/bad/"], **{"file.bin": BODY})
    with pytest.raises(DataError) as caught:
        fetch("mnist")
    assert f"{mirror.url}/bad/file.bin" in str(caught.value)
    assert reason in str(caught.value)
    assert not target.exists()
    offer([f"{mirror.url}/bad/", f"{mirror.url}/good"], **{"file.bin": BODY})
    fetch("mnist")
    assert target.read_bytes() == BODY


def test_every_mirror_tried_is_in_the_error_with_its_reason(cache: Path, offer, mirror: MirrorServer) -> None:
    mirror.answers["/b/file.bin"] = html_page
    unreachable, no_url = "http://127.0.0.1:9", "http://[::1"
    offer([f"{mirror.url}/a", f"{mirror.url}/b", unreachable, no_url], **{"file.bin": BODY})
    with pytest.raises(DataError) as caught:
        fetch("mnist")
    lines = str(caught.value).splitlines()
    assert [f"{mirror.url}/a/file.bin" in lines[1], "404" in lines[1]] == [True, True]
    assert [f"{mirror.url}/b/file.bin" in lines[2], "HTML" in lines[2]] == [True, True]
    assert [unreachable in lines[3], "refused" in lines[3].lower()] == [True, True]
    assert [no_url in lines[4], "Invalid" in lines[4]] == [True, True]


def test_bytes_beyond_the_end_are_refused_without_filling_the_disk(target: Path, mirror: MirrorServer) -> None:
    sent = []

    def endless(handler) -> None:
        handler.send_response(200)  # HTTP/1.0 and no length: the body ends with the connection
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(BODY)
            sent.append(len(BODY))

    mirror.answers[PATH] = endless
    with pytest.raises(DataError, match="SHA-256"):
        fetch("mnist")
    assert len(sent) < 150  # the system buffers some, but far from all
    assert not target.exists()
    assert not part_of(target).exists()


@pytest.mark.slow
def test_a_silent_server_times_out_and_its_bytes_are_kept(cache: Path, offer, mirror: MirrorServer) -> None:
    mirror.answers["/slow/file.bin"] = stalled_after(100, BODY)
    mirror.answers["/good/file.bin"] = whole(BODY)
    offer([f"{mirror.url}/slow"], **{"file.bin": BODY})
    with pytest.raises(DataError, match="timed out"):
        fetch("mnist", timeout=1)
    target = cache / "mnist" / "file.bin"
    assert part_of(target).read_bytes() == BODY[:100]
    offer([f"{mirror.url}/good"], **{"file.bin": BODY})
    fetch("mnist", timeout=60)
    assert target.read_bytes() == BODY
    assert mirror.requests[-1] == ("/good/file.bin", "bytes=100-")


def test_a_server_that_sends_one_byte_at_a_time_is_given_up(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = dropped_after(1, BODY)
    with pytest.raises(DataError, match="connection closed"):
        fetch("mnist")
    assert len(mirror.requests) == download.ATTEMPTS


def test_a_file_that_changes_on_the_server_never_gets_its_name(target: Path, mirror: MirrorServer) -> None:
    other = bytes(reversed(BODY))
    mirror.answers[PATH] = [dropped_after(1000, BODY), whole(other)]
    with pytest.raises(DataError, match="SHA-256"):
        fetch("mnist")
    assert not target.exists()


class FullDisk(io.FileIO):
    """A file on a disk with room for 100,000 more bytes."""

    room = 100_000

    def write(self, data: bytes) -> int:
        written = super().write(data[: self.room])
        self.room -= written
        if written < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written


def test_a_full_disk_is_an_error_and_the_download_resumes_when_there_is_room(
    target: Path, mirror: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_on_full_disk(path, mode="r", *arguments):
        is_output = str(path).endswith(".part") and mode in ("ab", "wb")
        return FullDisk(path, mode) if is_output else builtins.open(path, mode, *arguments)

    mirror.answers[PATH] = whole(BODY)
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", open_on_full_disk, raising=False)
        with pytest.raises(DataError, match="No space left on device") as caught:
            fetch("mnist")
    assert str(target.parent) in str(caught.value)
    assert not target.exists()
    fetch("mnist")
    assert target.read_bytes() == BODY
    assert mirror.requests == [(PATH, None), (PATH, "bytes=100000-")]


def test_an_error_about_a_folder_that_cannot_be_made_says_so(cache: Path, offer, mirror: MirrorServer) -> None:
    offer([mirror.url], **{"file.bin": BODY})
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written"):
        fetch("mnist")


def test_threads_that_fetch_at_once_download_once(target: Path, mirror: MirrorServer) -> None:
    mirror.answers[PATH] = whole(BODY)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fetch, ["mnist"] * 4))
    assert target.read_bytes() == BODY
    assert len(mirror.requests) == 1


def _fetch_from(url: str, root: str) -> None:
    files = (RemoteFile("file.bin", len(BODY), hashlib.sha256(BODY).hexdigest(), ("file.bin",)),)
    SOURCES["mnist"] = Source((url,), files)
    fetch("mnist", root)


@pytest.mark.slow
def test_a_second_process_waits_for_the_first(tmp_path: Path, cache: Path, mirror: MirrorServer) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def answer(handler) -> None:
        reached.set()
        go_on.wait(10)
        whole(BODY)(handler)

    mirror.answers[PATH] = answer
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fetch_from, args=(mirror.url, str(tmp_path))) for _ in range(2)]
    for process in processes:
        process.start()
    assert reached.wait(10)
    go_on.set()
    for process in processes:
        process.join(10)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "mnist" / "file.bin").read_bytes() == BODY
    assert len(mirror.requests) == 1


def test_the_users_own_mirror_is_tried_first(
    target: Path, mirror: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.answers["/own/mnist/file.bin"] = whole(BODY)
    monkeypatch.setenv("TINYVIT_MIRROR", f"{mirror.url}/own/")
    fetch("mnist")
    assert mirror.requests == [("/own/mnist/file.bin", None)]
    monkeypatch.setenv("TINYVIT_MIRROR", "/some/folder")
    target.unlink()
    with pytest.raises(DataError, match="TINYVIT_DATA"):
        fetch("mnist")


def test_a_destination_is_laid_out_as_tinyvit_data_expects(
    target: Path, mirror: MirrorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.answers[PATH] = whole(BODY)
    elsewhere = tmp_path / "elsewhere"
    assert fetch("mnist", elsewhere) == elsewhere / "mnist"
    assert find("mnist") is None
    monkeypatch.setenv("TINYVIT_DATA", str(elsewhere))
    assert find("mnist") == elsewhere / "mnist"


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_complete_folder_under_tinyvit_data_is_used_as_it_is(
    target: Path, mirror: MirrorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    own = tmp_path / "own" / "mnist"
    own.mkdir(parents=True)
    monkeypatch.setenv("TINYVIT_DATA", str(own.parent))
    mirror.answers[PATH] = whole(BODY)
    assert fetch("mnist") == target.parent  # the folder is there, but empty
    (own / f"file.bin{suffix}").write_bytes(b"anything")
    assert fetch("mnist") == own
    assert find("mnist") == own


def test_a_folder_under_tinyvit_data_that_lacks_files_is_named_with_them(
    cache: Path, offer, mirror: MirrorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "mnist"
    own.mkdir(parents=True)
    (own / "a.bin.gz").write_bytes(b"anything")
    monkeypatch.setenv("TINYVIT_DATA", str(own.parent))
    offer([mirror.url], **{"a.bin": BODY, "b.bin": BODY, "c.bin": BODY})
    with pytest.raises(DataError) as caught:
        fetch("mnist")
    assert str(caught.value).endswith(f"\n{own} lacks b.bin, c.bin")


def test_missing_files_are_named_as_they_are_served_or_by_their_parts(tmp_path: Path) -> None:
    source = Source((), (RemoteFile("all.tar.gz", 1, "", ("a.bin", "b.bin", "c.bin")),))
    assert missing_names(tmp_path, source) == ["all.tar.gz"]
    (tmp_path / "b.bin.xz").touch()
    assert missing_names(tmp_path, source) == ["a.bin", "c.bin"]
    (tmp_path / "all.tar.gz").touch()
    assert missing_names(tmp_path, source) == []


def test_tinyvit_data_must_be_a_folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        find("mnist")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/tinyvit"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/tinyvit"),
        ("darwin", {"XDG_CACHE_HOME": ""}, "/home/me/Library/Caches/tinyvit"),
        ("win32", {"XDG_CACHE_HOME": "", "LOCALAPPDATA": "/local"}, "/local/tinyvit"),
    ],
)
def test_the_cache_is_where_each_system_keeps_its_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.delenv("TINYVIT_DATA", raising=False)
    monkeypatch.setattr("tinyvit.data.sources.sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert data_roots() == [Path(expected)]


def test_an_error_about_an_unknown_name_suggests_the_nearest_one() -> None:
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        fetch("fashion_mnist")
    with pytest.raises(DataError, match="available: digits, mnist"):
        fetch("imagenet-21k")


def test_an_error_about_a_folder_says_how_to_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnits").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"there is no data set 'mnits' \(did you mean 'folder:mnits'"):
        load_dataset("mnits", "train")


def test_the_digits_need_no_download(cache: Path) -> None:
    assert (fetch("digits") / "digits.csv.gz").is_file()
    assert not cache.exists()


def test_the_table_of_sources_is_well_formed() -> None:
    assert set(SOURCES) == set(DATASET_NAMES) - {"digits", *GENERATED}
    files = list(itertools.chain.from_iterable(source.files for source in SOURCES.values()))
    assert len({file.sha256 for file in files}) == len(files)
    for file in files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.size > 4000
        assert file.parts
    for source in SOURCES.values():
        assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in source.mirrors)
