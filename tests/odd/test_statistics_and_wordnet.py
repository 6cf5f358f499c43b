"""Odd files of numbers and of WordNet: each is right, or named when it is opened."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from randcond.data.texts.wordnet import WordNet
from randcond.eval.scores.statistics import read_statistics
from randcond.launch.errors import UserError
from tests.support.warm import run_code

PAGE = b"<!DOCTYPE html>\n<html><title>Sign in</title></html>"


def arrays(**changes: object) -> bytes:
    """Returns an .npz file of statistics of 4 features, with some of its arrays replaced; None leaves one out."""
    whole: dict[str, object] = {"mu": np.zeros(4), "sigma": np.eye(4), **changes}
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in whole.items() if value is not None})  # type: ignore[arg-type]
    return file.getvalue()


def huge() -> bytes:
    """Returns an .npz file of a kilobyte that claims to hold an array of 8 TB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mu.npy", arrays_member("mu"))
        archive.writestr("sigma.npy", header.getvalue())
    return file.getvalue()


def arrays_member(name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(arrays())) as archive:
        return archive.read(f"{name}.npy")


NAN = np.full(4, np.nan)
STATISTICS = {
    "whole numbers": (arrays(mu=np.zeros(4, int)), ""),
    "single precision": (arrays(sigma=np.eye(4, dtype=np.float32)), ""),
    "NaN in mu": (arrays(mu=NAN), "mu holds 4 values that are NaN or infinite"),
    "NaN in sigma": (arrays(sigma=np.diag(NAN)), "sigma holds 4 values that are NaN"),
    "infinite": (arrays(mu=np.array([0, 0, 0, np.inf])), "mu holds 1 values that are NaN or infinite"),
    "mu in a row": (arrays(mu=np.zeros((1, 4))), r"mu is \(1, 4\), expected \(4,\)"),
    "sigma not square": (arrays(sigma=np.zeros((4, 3))), r"sigma is \(4, 3\), expected \(4, 4\)"),
    "of other features": (arrays(mu=np.zeros(9), sigma=np.eye(9)), r"mu is \(9,\), expected \(4,\)"),
    "complex": (arrays(sigma=np.eye(4, dtype=complex)), "sigma is of type complex128, expected real numbers"),
    "objects": (arrays(mu=np.array([{}, 1, 2, 3], dtype=object)), "mu is of type object, expected real numbers"),
    "asymmetric": (arrays(sigma=np.triu(np.ones((4, 4)))), "sigma is no covariance"),
    "negative variances": (arrays(sigma=-np.eye(4)), "sigma is no covariance"),
    "no sigma": (arrays(sigma=None), "does not hold FID statistics mu and sigma"),
    "facts that are no text": (arrays(facts=np.zeros(3)), "facts is float64 .*expected a text"),
    "facts that are no JSON object": (arrays(facts=np.array("[]")), "does not hold FID statistics"),
    "eight terabytes": (huge(), r"sigma is \(1000000, 1000000\)"),
    "cut": (arrays()[:-40], "does not hold FID statistics"),
    "a page": (PAGE, "does not hold FID statistics"),
    "empty": (b"", "does not hold FID statistics"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_right_or_named(name: str, tmp_path: Path) -> None:
    data, error = STATISTICS[name]
    (tmp_path / "all.npz").write_bytes(data)
    if error:
        with pytest.raises(UserError, match=rf"^eval\.statistics: .*all\.npz: .*{error}"):
            read_statistics(str(tmp_path), "all", "inception", {}, 4)
    else:
        assert read_statistics(str(tmp_path), "all", "inception", {}, 4).moments.covariance.dtype == np.float64


LICENCE = "  1 This software and database is being provided to you  \n"
SYNSETS = [
    "00000060 03 n 01 entity 0 001 ~ 00000150 n 0000 | what is  \n",
    "00000150 03 n 02 dog 0 domestic_dog 0 001 @ 00000060 n 0000 | an animal  \n",
    "00000240 03 n 01 wolf 0 001 @ 00000150 n 0000 | a wild one  \n",
]
NOUNS = [
    "dog n 1 1 @ 1 0 00000150  \n",
    "domestic_dog n 1 1 @ 1 0 00000150  \n",
    "entity n 1 1 ~ 1 0 00000060  \n",
    "wolf n 1 1 @ 1 0 00000240  \n",
]
DATA_NOUN, INDEX_NOUN = LICENCE + "".join(SYNSETS), LICENCE + "".join(NOUNS)
WORDNETS = {  # data.noun, index.noun -> the error; "": none
    "whole": (DATA_NOUN, INDEX_NOUN, ""),
    "line ends of Windows": (DATA_NOUN.replace("\n", "\r\n"), INDEX_NOUN.replace("\n", "\r\n"), ""),
    "data.noun cut in a line": (DATA_NOUN[:-30], INDEX_NOUN, "data.noun: ends in the middle of a line"),
    "data.noun cut after a line": (LICENCE + "".join(SYNSETS[:2]), INDEX_NOUN, "data.noun: lacks synset 00000240"),
    "data.noun without its middle": (
        LICENCE + SYNSETS[0] + SYNSETS[2],
        INDEX_NOUN,
        "data.noun: synset 00000240 is a kind of 00000150, which it lacks",
    ),
    "index.noun cut in a line": (DATA_NOUN, INDEX_NOUN[:-10], "index.noun: ends in the middle of a line"),
    "index.noun cut after a line": (DATA_NOUN, LICENCE + "".join(NOUNS[:3]), "index.noun: lacks 'wolf'"),
    "offsets of another version": (DATA_NOUN, INDEX_NOUN.replace("00000240", "00000241"), "lacks synset 00000241"),
    "a line of index.noun without numbers": (DATA_NOUN, INDEX_NOUN + "cat n\n", "index.noun: not in WordNet's format"),
    "empty": ("", INDEX_NOUN, "data.noun: ends in the middle of a line"),
    "a page": (PAGE.decode() + "\n", INDEX_NOUN, "data.noun: not in WordNet's format"),
}


@pytest.mark.parametrize("name", WORDNETS)
def test_a_wordnet_is_whole_or_named(name: str, tmp_path: Path) -> None:
    data, index, error = WORDNETS[name]
    (tmp_path / "data.noun").write_bytes(data.encode())
    (tmp_path / "index.noun").write_bytes(index.encode())
    (tmp_path / "noun.exc").write_text("wolves wolf\n")
    if error:
        with pytest.raises(UserError, match=re.escape(error)):
            WordNet(tmp_path)
    else:
        assert WordNet(tmp_path).under("dog") == {"dog", "domestic dog", "wolf"}


LIMITED = """
import gzip, resource, sys
from pathlib import Path
from randcond.data.inputs.fetch import fetch
from randcond.eval.scores.statistics import read_statistics
from randcond.launch.errors import UserError
from tests.support.warm import run_code
from tests.support.web import reply, scripted

used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 2_000_000_000, resource.RLIM_INFINITY))
folder = Path(sys.argv[1])
try:
    read_statistics(str(folder), "all", "inception", {}, 4)
except UserError as error:
    print(error)
with scripted(lambda request: reply(gzip.compress(bytes(500_000_000), 1), Content_Encoding="gzip")) as (url, _):
    print(fetch(f"{url}/zeros", folder / "zeros").stat().st_size)
"""


@pytest.mark.heavy
def test_files_that_claim_or_unpack_to_much_need_little_memory(tmp_path: Path) -> None:
    (tmp_path / "all.npz").write_bytes(huge())
    done = run_code(LIMITED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "sigma is (1000000, 1000000), expected (4, 4)" in done.stdout and done.stdout.endswith("500000000\n")
