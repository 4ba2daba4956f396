"""The class losses of dense heads by name."""

from typing import Literal, NamedTuple

ClassKind = Literal["quality", "bce", "varifocal", "focal"]
CLASS_KINDS: tuple[ClassKind, ...] = ("quality", "bce", "varifocal", "focal")  # their places are the op's numbers


class ClassLoss(NamedTuple):
    """A class loss, and its parameters.

    With the target q in 0 .. 1, a logit x and p = sigmoid(x); background is q = 0:

        quality     |q - p|^gamma * BCE(p, q)
        bce         BCE(p, q)
        varifocal   q * BCE(p, q); for background alpha * p^gamma * BCE(p, 0)
        focal       (alpha * q + (1 - alpha) * (1 - q)) * |q - p|^gamma * BCE(p, q)

    Attributes:
        kind: Name of the loss.
        gamma: Exponent; GFL's beta.
        alpha: Factor of background (varifocal), or of the positives (focal).
    """

    kind: ClassKind
    gamma: float = 2.0
    alpha: float = 0.25

    @property
    def background(self) -> tuple[float, float]:
        """Return factor and exponent of the loss of background, factor * p^exponent * softplus(x)."""
        factors = {"quality": 1.0, "bce": 1.0, "varifocal": self.alpha, "focal": 1 - self.alpha}
        return factors[self.kind], 0.0 if self.kind == "bce" else self.gamma
