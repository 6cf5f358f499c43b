"""The image formats that are read: those that Pillow decodes itself, by file suffix and by signature.

Left out, because another program or gigabytes of memory would decode them: EPS (Ghostscript), WMF and EMF (Windows),
IPTC (opens any format inside), FITS, FPX and MIC (other packages), and PDF, HEIC, SVG and JPEG XL (not Pillow's).
"""

from randcond.data.inputs.signatures import COMPRESSED, kind_of_content

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

# Suffixes that every version of randcond has read: here an image without a caption is always a mistake.
COMMON = (".jpg", ".jpeg", ".png", ".webp")

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

# What often stands in an image's place, by the kind of content -> what is said of it.
OTHERS = {
    "PostScript": "PostScript, which is not read because another program would have to run it",
    "EPS": "PostScript (EPS), which is not read because another program would have to run it",
    "WMF": "a Windows metafile, which Pillow does not decode itself",
    "PDF": "PDF, which Pillow does not decode",
    "SVG": "SVG, which Pillow does not decode",
    "XML": "XML or SVG, which Pillow does not decode",
    "HTML": "HTML: a page that a server sent in place of the image",
    "Git LFS": "a Git LFS pointer in place of the image; fetch it with `git lfs pull`",
    "FITS": "FITS, which is not read",
    "AVIF": "AVIF that can't be read; it may be cut off",
    "HEIC": "HEIC or a video (ftyp {kind}), which Pillow does not decode",
    "JPEG XL": "JPEG XL, which Pillow does not decode",
    "IPTC": "IPTC data, which is not read",
    "tar": "a tar archive",
    "parquet": "parquet data",
    **{kind: f"compressed data ({kind})" for kind in COMPRESSED},
}


def describe_content(data: bytes) -> str:
    """Returns what a file that is no image seems to hold, for an error message.

    >>> describe_content(b"<HTML><body>404</body>")
    'holds HTML: a page that a server sent in place of the image'
    >>> describe_content(b"hello")
    'has the signature of no format that is read'
    """
    if what := OTHERS.get(kind_of_content(data)):
        return f"holds {what.format(kind=data[8:12].decode('latin-1'))}"
    if not data.strip(b"\0"):
        return "holds only zeros"
    return "has the signature of no format that is read"
