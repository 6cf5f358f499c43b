"""Tells by the first bytes of a file what it is, if not what its name says: compressed, an archive, a page, ..."""

import re

HEAD = 4096  # first bytes of a file that are looked at

_PAGE = rb"(?is)(?:\xef\xbb\xbf)?\s*+(?:<\?xml[^>]*>\s*+)?+(?:<!--.*?-->\s*+)*+<(?:!doctype\s+html|html[\s>])"
_SIGNATURES = (  # the first one that matches counts
    ("gzip", rb"\x1f\x8b\x08"),
    ("bzip2", rb"BZh[1-9]1AY&SY"),
    ("xz", rb"\xfd7zXZ\0"),
    ("zstandard", rb"\x28\xb5\x2f\xfd"),
    ("zip", rb"PK\x03\x04"),
    ("tar", rb"(?s).{257}ustar(?:\0|  \0)"),
    ("parquet", rb"PAR1[\0-\x08\x0e-\x1f]"),
    ("PDF", rb"\s*%PDF-"),
    ("HTML", _PAGE),
    ("SVG", rb"(?i)\s*<svg"),
    ("XML", rb"(?i)\s*<\?xml"),
    ("Git LFS", rb"version https://git-lfs"),
    ("PostScript", rb"\s*%!PS"),
    ("EPS", rb"\xc5\xd0\xd3\xc6"),
    ("WMF", rb"\xd7\xcd\xc6\x9a"),
    ("FITS", rb"SIMPLE  ="),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("AVIF", rb"(?s).{4}ftypavi[fs]"),
    ("HEIC", rb"(?s).{4}ftyp"),
    ("IPTC", rb"\x1c\x02"),
    ("UTF-32", rb"\xff\xfe\0\0|\0\0\xfe\xff"),
)
COMPRESSED = ("gzip", "bzip2", "xz", "zstandard", "zip")


def kind_of_content(head: bytes) -> str:
    """Returns the kind of file that begins with `head` (up to HEAD bytes), e.g. "gzip"; "" if none is recognised.

    >>> kind_of_content(b"<!-- x --><HTML lang=en>"), kind_of_content(b"PK\\3\\4"), kind_of_content(b"caption,a")
    ('HTML', 'zip', '')
    >>> kind_of_content(b" " * 256 + b"mustard"), kind_of_content(b" " * 257 + b"ustar  \\0")
    ('', 'tar')
    """
    return next((kind for kind, pattern in _SIGNATURES if re.match(pattern, head[:HEAD])), "")
