"""Odd downloads: each case is a tar, tar.gz or zip, and what the error says; without an error it is whole."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from typing import NamedTuple

from tests.odd.tar_cases import flipped, linked
from tests.support.odd_tars import END, member, pax, sized, sparse, tar


def zip_of(*entries: tuple[str, bytes], **fields: object) -> bytes:
    """Returns a zip; `fields` are set in the record of its last entry, at both of its places."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            for field, value in fields.items() if name == entries[-1][0] else ():
                setattr(info, field, value)
            packed.writestr(info, data)
    return out.getvalue()


def with_flag(data: bytes, bit: int) -> bytes:
    """Sets a flag in every record of a zip."""
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(signature)
        while at >= 0:
            data = data[: at + place] + bytes([data[at + place] | bit]) + data[at + place + 1 :]
            at = data.find(signature, at + 4)
    return data


def with_size(data: bytes, size: int) -> bytes:
    """Sets the uncompressed size in the first record of a zip's table."""
    at = data.find(b"PK\1\2") + 24
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


FILES = [("a/1.txt", b"one" * 999), ("a/2.txt", b"two")]
PLAIN = tar([member(name, data) for name, data in FILES])
PACKED = gzip.compress(PLAIN)
ZIP = zip_of(*FILES)
FETCH = "; remove it and fetch it again"
NAMES = ["a/1.txt", "a/2.txt"]


class Archive(NamedTuple):
    name: str
    data: bytes
    error: str = ""  # empty: it is unpacked to FILES


ARCHIVES = {
    "a whole tar": Archive("x.tar", PLAIN),
    "a whole tar.gz": Archive("x.tar.gz", PACKED),
    "a whole zip": Archive("x.zip", ZIP),
    "a tar.gz of two gzip members": Archive("x.tar.gz", gzip.compress(PLAIN[:700]) + gzip.compress(PLAIN[700:])),
    "a tar.gz filled with zeros": Archive("x.tar.gz", PACKED + bytes(512)),
    "a tar with a hole": Archive(
        "x.tar", tar([member("1", b"x"), bytes(512), member("2", b"x")]), "a hole of zeros, or two"
    ),
    "a tar.gz with a hole": Archive(
        "x.tar.gz",
        gzip.compress(tar([member("1", b"x"), bytes(512), member("2", b"x")])),
        "a hole of zeros, or two tars",
    ),
    "a tar.gz of two tars": Archive("x.tar.gz", PACKED + PACKED, "or two tars joined"),
    "a tar.gz whose tar has no end": Archive("x.tar.gz", gzip.compress(PLAIN[: -len(END)]), "without the end mark"),
    "a tar.gz whose tar is cut off": Archive("x.tar.gz", gzip.compress(PLAIN[:1000]), "unexpected end of data"),
    "a tar.gz with a flipped header": Archive(
        "x.tar.gz", gzip.compress(flipped(PLAIN, 3584)), "at byte 3584: no header"
    ),
    "a tar.gz that is cut off": Archive("x.tar.gz", PACKED[:-30], "x.tar.gz: .*ended before the end-of-stream marker"),
    "a tar.gz without its checksum": Archive("x.tar.gz", PACKED[:-8], "ended before the end-of-stream marker"),
    "a tar.gz with a wrong checksum": Archive("x.tar.gz", flipped(PACKED, len(PACKED) - 6), "CRC check failed"),
    "a tar.gz with noise after it": Archive("x.tar.gz", PACKED + b"noise", "Not a gzipped file"),
    "a tar.gz with a damaged stream": Archive("x.tar.gz", flipped(PACKED, 30), "x.tar.gz: "),
    "no tar.gz": Archive("x.tar.gz", b"<html>", "x.tar.gz: at byte 0"),
    "an empty tar.gz": Archive("x.tar.gz", b"", "x.tar.gz: at byte 0: empty file"),
    "a link in a tar": Archive("x.tar", tar([linked("l", tarfile.SYMTYPE, "/etc")]), "l is a link, not a regular file"),
    "a device in a tar": Archive("x.tar", tar([linked("d", tarfile.BLKTYPE)]), "d is a device"),
    "a sparse file in a tar": Archive("x.tar", tar([sparse("s", 8_000_000_000)]), "s is a sparse file"),
    "a way out of a tar": Archive("x.tar", tar([member("../out", b"x")]), r"\.\./out lies outside"),
    "a way out in the middle": Archive("x.tar", tar([member("a/../../out", b"x")]), "lies outside"),
    "an absolute name in a tar": Archive("x.tar", tar([member("/tmp/out", b"x")]), "lies outside"),
    "two members of a name": Archive(
        "x.tar", tar([member("1", b"x"), member("./1", b"y")]), "two members have the name"
    ),
    "a file that is a folder too": Archive(
        "x.tar", tar([member("1", b"x"), member("1/2", b"y")]), "both a file and a fol"
    ),
    "a name of 300 letters": Archive("x.tar", tar([pax({"path": "x" * 300}, member("n", b"x"))]), "name too long"),
    "a pax header that claims 8 GB": Archive(
        "x.tar", tar([pax({"path": "x"}, b"", size=8 << 30)]), "a header of 8589934592"
    ),
    "a file that claims 8 GB": Archive("x.tar", tar([sized("1", 8 << 30)]), "the file ends inside 1"),
    "a file in a tar.gz that claims 8 GB": Archive("x.tar.gz", gzip.compress(tar([sized("1", 8 << 30)])), "x.tar.gz: "),
    "no zip": Archive("x.zip", b"PK no zip", "File is not a zip file"),
    "an empty zip": Archive("x.zip", zip_of(), "holds no file"),
    "a zip that is cut off": Archive("x.zip", ZIP[:-40], "File is not a zip file"),
    "two zips joined": Archive("x.zip", zip_of(("0", b"x")) + ZIP, "bytes stand before its first member: two zips"),
    "a link in a zip": Archive(
        "x.zip", zip_of(("l", b"/etc"), external_attr=(stat.S_IFLNK | 0o777) << 16), "l is a link"
    ),
    "a pipe in a zip": Archive(
        "x.zip", zip_of(("p", b""), external_attr=(stat.S_IFIFO | 0o666) << 16), "p is a device"
    ),
    "an encrypted zip": Archive("x.zip", with_flag(ZIP, 1), r"a/1\.txt is encrypted, not a regular file"),
    "a zip with a wrong checksum": Archive("x.zip", ZIP.replace(b"two", b"tw0", 1), r"Bad CRC-32 for file 'a/2\.txt'"),
    "a zip by another method": Archive("x.zip", zip_of(("1", b"x"), compress_type=zipfile.ZIP_LZMA), "by method 14"),
    "a way out of a zip": Archive("x.zip", zip_of(("../../out", b"x")), r"\.\./\.\./out lies outside"),
    "an absolute name in a zip": Archive("x.zip", zip_of(("/tmp/out", b"x")), "lies outside"),
    "a Windows path in a zip": Archive("x.zip", zip_of((r"..\out", b"x")), "lies outside"),
    "two members of a name in a zip": Archive("x.zip", zip_of(("1", b"x"), ("./1", b"y")), "two members have the name"),
    "a zip whose table has a wrong size": Archive("x.zip", with_size(ZIP, 5_000), "x.zip: "),
    "a zip with a name of its own in the table": Archive(
        "x.zip", ZIP.replace(b"a/1.txt", b"b/1.txt", 1), "File name in directory .* and header .* differ"
    ),
}
