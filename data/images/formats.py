"""The image formats that are read: those that Pillow decodes itself, by file suffix and by signature.

Left out, because another program or gigabytes of memory would decode them: EPS (Ghostscript), WMF and EMF (Windows),
IPTC (opens any format inside), FITS, FPX and MIC (other packages), and PDF, HEIC, SVG and JPEG XL (not Pillow's).
"""

# Suffix -> Pillow's name of the format. A file with another suffix is no image for us.
SUFFIXES = {
    ".apng": "PNG",
    ".avif": "AVIF",
    ".avifs": "AVIF",
    ".blp": "BLP",
    ".bmp": "BMP",
    ".bw": "SGI",
    ".cur": "CUR",
    ".dcx": "DCX",
    ".dds": "DDS",
    ".dib": "DIB",
    ".flc": "FLI",
    ".fli": "FLI",
    ".ftc": "FTEX",
    ".ftu": "FTEX",
    ".gbr": "GBR",
    ".gif": "GIF",
    ".icb": "TGA",
    ".icns": "ICNS",
    ".ico": "ICO",
    ".im": "IM",
    ".j2c": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jfif": "JPEG",
    ".jp2": "JPEG2000",
    ".jpc": "JPEG2000",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpf": "JPEG2000",
    ".jpg": "JPEG",
    ".jpx": "JPEG2000",
    ".mpo": "JPEG",
    ".msp": "MSP",
    ".pbm": "PPM",
    ".pcd": "PCD",
    ".pcx": "PCX",
    ".pfm": "PPM",
    ".pgm": "PPM",
    ".png": "PNG",
    ".pnm": "PPM",
    ".ppm": "PPM",
    ".psd": "PSD",
    ".pxr": "PIXAR",
    ".qoi": "QOI",
    ".ras": "SUN",
    ".rgb": "SGI",
    ".rgba": "SGI",
    ".sgi": "SGI",
    ".tga": "TGA",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".vda": "TGA",
    ".vst": "TGA",
    ".webp": "WEBP",
    ".xbm": "XBM",
    ".xpm": "XPM",
}

# Formats with a signature, which is believed whatever the suffix says. The others are tried only under their suffix:
# TGA has no signature at all, and would find an image in noise.
SIGNED = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "AVIF",
    "JPEG2000",
    "PPM",
    "ICO",
    "ICNS",
    "PSD",
    "QOI",
    "SGI",
    "SUN",
    "DDS",
    "BLP",
    "FTEX",
    "XPM",
)

# How files begin that often stand in an image's place -> what they are.
OTHERS = {
    b"%!PS": "PostScript, which is not read because another program would have to run it",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS), which is not read because another program would have to run it",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile, which Pillow does not decode itself",
    b"%PDF": "PDF, which Pillow does not decode",
    b"<svg": "SVG, which Pillow does not decode",
    b"<?xml": "XML or SVG, which Pillow does not decode",
    b"<!doc": "HTML: a page that a server sent in place of the image",
    b"<html": "HTML: a page that a server sent in place of the image",
    b"version https://git-lfs": "a Git LFS pointer in place of the image; fetch it with `git lfs pull`",
    b"SIMPLE  =": "FITS, which is not read",
    b"\xff\x0a": "JPEG XL, which Pillow does not decode",
    b"\0\0\0\x0cJXL ": "JPEG XL, which Pillow does not decode",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "compressed data (gzip)",
    b"\x1c\x02": "IPTC data, which is not read",
}


def describe_content(data: bytes) -> str:
    """Returns what a file that is no image seems to hold, for an error message.

    >>> describe_content(b"<HTML><body>404</body>")
    'holds HTML: a page that a server sent in place of the image'
    >>> describe_content(b"hello")
    'has the signature of no format that is read'
    """
    begin = data[:64].lstrip().lower()
    if data[4:8] == b"ftyp":
        kind = data[8:12].decode("latin-1")
        return f"holds HEIC or a video (ftyp {kind}), which Pillow does not decode"
    for start, what in OTHERS.items():
        if begin.startswith(start.lower()):
            return f"holds {what}"
    if not data.strip(b"\0"):
        return "holds only zeros"
    return "has the signature of no format that is read"
