"""Makes tars member by member, with headers that no program writes, and what follows them."""

import io
import tarfile
from collections.abc import Sequence

BLOCK = 512
END = bytes(2 * BLOCK)  # the end mark: two blocks of zeros


def member(name: str, data: bytes = b"", **fields: object) -> bytes:
    """Returns a member: its header and its data, filled to a block. `fields`: of TarInfo, such as type and size."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return header(info) + data + bytes(-len(data) % BLOCK)


def header(info: tarfile.TarInfo, kind: int = tarfile.GNU_FORMAT) -> bytes:
    """Returns the header of a member."""
    return info.tobuf(kind)


def checked(head: bytes) -> bytes:
    """Returns a header of 512 bytes with the checksum that its bytes have."""
    blank = head[:148] + b" " * 8 + head[156:]
    return head[:148] + f"{sum(blank):06o}\0 ".encode() + head[156:]


def sized(name: str, size: int) -> bytes:
    """Returns a header that claims any size, negative ones too (base 256)."""
    head = bytearray(header(tarfile.TarInfo(name)))
    head[124:136] = (size % (1 << 96)).to_bytes(12, "big")
    head[124] = 0xFF if size < 0 else 0x80
    return checked(bytes(head))


def sparse(name: str, size: int) -> bytes:
    """Returns a GNU sparse member: `size` bytes, of which one block is stored."""
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, BLOCK
    head = bytearray(header(info))
    for number, value in enumerate((0, BLOCK, size, 0)):  # offset and length of two parts
        head[386 + 12 * number : 398 + 12 * number] = f"{value:011o}\0".encode()
    head[483:495] = f"{size:011o}\0".encode() if size < 8**11 else (1 << 95 | size).to_bytes(12, "big")
    return checked(bytes(head)) + b"x" * BLOCK


def pax(fields: dict[str, str], then: bytes, size: int | None = None) -> bytes:
    """Returns a pax header with these fields, followed by a member. `size`: what the header claims to have."""
    data = b""
    for name, value in fields.items():
        record = f" {name}={value}\n".encode()
        length = len(record) + len(str(len(record) + 2))
        data += f"{length}".encode() + record
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(data) if size is None else size
    head = header(info) if size is None else checked(_with_type(sized("pax", size), tarfile.XHDTYPE))
    return head + data + bytes(-len(data) % BLOCK) + then


def _with_type(head: bytes, kind: bytes) -> bytes:
    return head[:156] + kind + head[157:]


def tar(members: Sequence[bytes], end: bytes = END) -> bytes:
    """Returns a tar of these members, with its end mark."""
    return b"".join(members) + end


def zipped(files: dict[str, bytes]) -> bytes:
    """Returns a zip of these files."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return out.getvalue()
