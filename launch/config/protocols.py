"""Evaluation protocols by name: which sampler draws, and what happens to an image before it is scored.

A leaf, like the configuration: the planner prices evaluations by it on a login node.
"""

from dataclasses import dataclass

from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """How images are drawn and what is done to them; None: the pipeline's own."""

    name: str
    sampler: str
    steps: int | None
    guidance: float | None
    size: int | None = None  # pixels of the side that scores read, by Pillow's default filter; None: as drawn
    jpeg: bool = False  # saved as JPEG at Pillow's default quality, before that resize and after it
    fixed: bool = False  # sampler, steps and guidance are part of the name

    @property
    def images(self) -> str:
        """What happens to an image, in words."""
        steps = [*(["JPEG"] if self.jpeg else []), *([f"resize to {self.size}"] if self.size else [])]
        steps += ["JPEG"] if self.jpeg and self.size else []
        return ", ".join(steps) or "as drawn"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("paper", "ddim", 25, 7.5, size=256, jpeg=True, fixed=True),  # supplement K
        Protocol("bk-sdm", "pndm", 25, 7.5, size=256, jpeg=True, fixed=True),  # the rows with a dagger in Table 4
        Protocol("sdxl", "teacher", None, None, size=256, jpeg=True),  # 1024 -> 256, library defaults (Table 4)
        Protocol("native", "ddim", 25, 7.5),
    )
}


def protocol_of(ev: Eval) -> Protocol:
    """The named protocol with what the experiment says of sampler, steps and guidance.

    Raises UserError when the name is unknown, or stands for another sampler than the experiment asks for.
    """
    if ev.protocol not in PROTOCOLS:
        raise UserError(f"eval.protocol: unknown {ev.protocol!r}; known: {', '.join(PROTOCOLS)}")
    named = PROTOCOLS[ev.protocol]
    asked = {"sampler": ev.sampler, "steps": ev.steps, "guidance": ev.guidance}
    given = {key: value for key, value in asked.items() if value is not None}
    for key, value in given.items():
        if named.fixed and value != getattr(named, key):
            raise UserError(
                f"eval.{key}: protocol {named.name} stands for {getattr(named, key)}, got {value}; leave the key out, "
                f"or take eval.protocol={'sdxl' if named.size else 'native'}, which leaves it open"
            )
    return Protocol(**{**vars(named), **given})
