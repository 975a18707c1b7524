"""What is done to a torch network to make it quicker; each of it can be left out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

_NONE = "none"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What may be done where it serves; a network is left as it was where that changes it.

    Attributes:
        fold: normalisations into the convolutions before them, see :mod:`folding`.
        channels_last: convolutions compute with the channels last, see :mod:`layout`.
        pack: weights of a program's convolutions once instead of for each batch, see
            :mod:`packing`; changes no bit of the output.
    """

    fold: bool = True
    channels_last: bool = True
    pack: bool = True

    @classmethod
    def of(cls, text: str) -> Self:
        """Of names with commas between them, such as ``fold,pack``, or ``none``.

        Raises:
            ValueError: there is no such.
        """
        known = [field.name for field in fields(cls)]
        names = [] if text.strip() == _NONE else [name.strip() for name in text.split(",")]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is no tuning; name some of {', '.join(known)}, or {_NONE}"
            )
        return cls(**{name: name in names for name in known})

    def __str__(self) -> str:
        """As :meth:`of` reads it."""
        names = [field.name for field in fields(self) if getattr(self, field.name)]
        return ",".join(names) or _NONE

    @property
    def as_programs(self) -> bool:
        """Whether networks are as those that are kept as programs: folded, channels last."""
        return self.fold and self.channels_last


EVERYTHING = Tuning()
