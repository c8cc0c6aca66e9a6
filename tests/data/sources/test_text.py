import gzip
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.data.sources import text as files_module
from lit_distil.data.sources.text import read_lines, resolve_files


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\rc", ["a", "b", "c"]),
        (b"a\n\n\r\nb", ["a", "", "", "b"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        ("a\u2028b\x85c\x0cd\x1ce".encode(), ["a\u2028b\x85c\x0cd\x1ce"]),
        ("שלום 👩‍👩‍👧 e\u0301\n".encode(), ["שלום 👩‍👩‍👧 e\u0301"]),
        (b"", []),
    ],
)
def test_lines_are_split_and_keep_their_characters(tmp_path, data, lines):
    assert list(read_lines(write(tmp_path / "a.txt", data))) == lines


@pytest.mark.filterwarnings("ignore:.*were cut in")
@settings(max_examples=100)
@given(
    text=st.text(st.sampled_from("aé\r\n 日"), max_size=40),
    block=st.integers(1, 7),
    longest=st.none() | st.integers(4, 9),
)
def test_the_block_size_changes_nothing(tmp_path_factory, text, block, longest):
    path = write(tmp_path_factory.mktemp("f") / "a.txt", text.encode())
    with pytest.MonkeyPatch.context() as patch, path.open(newline=None, encoding="utf-8") as file:
        patch.setattr(files_module, "_BLOCK_BYTES", block)
        found = list(read_lines(path, longest=longest))
        whole = [line.rstrip("\n") for line in file]
    if longest is None:
        assert found == whole
    else:
        assert "".join(found) == "".join(whole)
        assert max(map(len, found), default=0) <= max(longest, 1) + block


def test_an_endless_line_is_cut_at_spaces_in_bounded_memory(tmp_path):
    path = write(tmp_path / "a.txt", b"word " * 4_000_000)
    tracemalloc.start()
    with pytest.warns(UserWarning, match="lines of more than 1,000,000 bytes were cut in 1"):
        total = sum(len(line) for line in read_lines(path, longest=1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 20_000_000
    assert peak < 9_000_000


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_invalid_utf8_is_reported_with_its_line(tmp_path, end):
    path = write(tmp_path / "a.txt", b"fine" + end + b"fine too" + end + b"caf\xe9" + end + b"x")
    with pytest.raises(ValueError, match=r"a\.txt:3: not UTF-8"):
        list(read_lines(path))
    assert list(read_lines(path, errors="replace"))[2] == "caf\ufffd"


def test_gzip_is_recognised_by_its_bytes_and_may_have_several_members(tmp_path):
    path = write(tmp_path / "a.txt", gzip.compress(b"a\nb") + gzip.compress(b"c\nd\n") + b"\0\0")
    assert list(read_lines(path)) == ["a", "bc", "d"]


def test_truncated_or_damaged_gzip_is_refused(tmp_path):
    data = gzip.compress(b"".join(b"line %d\n" % n for n in range(5000)))
    with pytest.raises(ValueError, match=r"a\.gz: the compressed file is cut short after"):
        list(read_lines(write(tmp_path / "a.gz", data[: len(data) // 2])))
    with pytest.raises(ValueError, match=r"a\.gz: the compressed file is damaged after"):
        list(read_lines(write(tmp_path / "a.gz", data[:-8] + b"\1\2\3\4" + data[-4:])))


def test_zstd_is_read_whole_and_refused_if_truncated_or_damaged(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.ZstdCompressor().compress(b"line\n" * 1000)
    assert len(list(read_lines(write(tmp_path / "a.txt", data + data)))) == 2000
    with pytest.raises(ValueError, match="cut short"):
        list(read_lines(write(tmp_path / "a.txt", data[:-4])))
    with pytest.raises(ValueError, match="damaged"):
        list(read_lines(write(tmp_path / "a.txt", data[:4] + b"\xff" * 20)))


def test_files_folders_and_globs_are_resolved_in_order(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden", "c[1].txt"):
        write(tmp_path / name, b"x")
    names = [path.name for path in resolve_files(str(tmp_path), field="f")]
    assert names == ["a.txt", "b.txt", "c[1].txt"]
    assert [path.name for path in resolve_files(f"{tmp_path}/?.txt", field="f")] == ["a.txt", "b.txt"]
    assert [path.name for path in resolve_files([f"{tmp_path}/c[1].txt", f"{tmp_path}/a.txt"], field="f")] == [
        "c[1].txt",
        "a.txt",
    ]
    assert resolve_files(None, field="f") == []
