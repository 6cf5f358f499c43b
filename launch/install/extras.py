"""The extras of pyproject.toml: packages that only some commands need, and the check that they are installed."""

from importlib.metadata import PackageNotFoundError, distribution, requires

from randcond.launch.errors import UserError


def need(extra: str, what: str) -> None:
    """Raises UserError naming the command that installs an extra, if one of its packages is not installed.

    `what`: the stage, command or key that needs it, for the message.
    """
    if missing := missing_packages(extra):
        raise UserError(f"{what} needs {', '.join(missing)}, not installed here: pip install 'randcond[{extra}]'")


def missing_packages(extra: str) -> list[str]:
    """Returns the packages of an extra that are not installed.

    The installed metadata of randcond lists them. Without it (randcond runs from its files), none is missing.
    """
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in requires("randcond") or []]
    except PackageNotFoundError:
        return []
    marked = [each for each in requirements if each.marker and not each.marker.evaluate({"extra": ""})]
    names = [each.name for each in marked if each.marker and each.marker.evaluate({"extra": extra})]
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
