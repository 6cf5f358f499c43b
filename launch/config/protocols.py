"""Evaluation protocols by name: which sampler draws, and how an image is prepared for scoring.

Imports no torch, because the planner predicts the costs of evaluations on a login node.
"""

from dataclasses import dataclass

from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """How images are drawn and prepared. None: the pipeline's own setting."""

    name: str
    sampler: str
    steps: int | None
    guidance: float | None
    size: int | None = None  # side of the scored image in pixels, resized by Pillow's default filter; None: as drawn
    jpeg: bool = False  # saved as JPEG at Pillow's default quality, before and after the resize
    fixed: bool = False  # the experiment can't change sampler, steps and guidance

    @property
    def images(self) -> str:
        """Returns how an image is prepared, in words."""
        steps = [*(["JPEG"] if self.jpeg else []), *([f"resize to {self.size}"] if self.size else [])]
        steps += ["JPEG"] if self.jpeg and self.size else []
        return ", ".join(steps) or "as drawn"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("paper", "ddim", 25, 7.5, size=256, jpeg=True, fixed=True),  # supplement K
        Protocol("bk-sdm", "pndm", 25, 7.5, size=256, jpeg=True, fixed=True),  # the rows with a dagger in Table 4
        Protocol("sdxl", "teacher", None, None, size=256, jpeg=True),  # 1024 -> 256, library defaults (Table 4)
        # Few steps (docs/lcm.md). The guidance is a scale that the model was told in its own distillation.
        Protocol("lcm", "lcm", 4, 8.0, size=256, jpeg=True),
        Protocol("native", "ddim", 25, 7.5),
    )
}


def protocol_of(ev: Eval) -> Protocol:
    """Returns the named protocol with the experiment's sampler, steps and guidance.

    Raises UserError if the name is unknown, or if the protocol fixes one of these to another value.
    """
    if ev.protocol not in PROTOCOLS:
        raise UserError(f"eval.protocol: unknown {ev.protocol!r}; known: {', '.join(PROTOCOLS)}")
    named = PROTOCOLS[ev.protocol]
    asked = {"sampler": ev.sampler, "steps": ev.steps, "guidance": ev.guidance}
    given = {key: value for key, value in asked.items() if value is not None}
    for key, value in given.items():
        if named.fixed and value != getattr(named, key):
            raise UserError(
                f"eval.{key}: protocol {named.name} fixes it to {getattr(named, key)}, got {value}; leave the key out, "
                f"or use eval.protocol={'sdxl' if named.size else 'native'}, where it can be chosen"
            )
    return Protocol(**{**vars(named), **given})
