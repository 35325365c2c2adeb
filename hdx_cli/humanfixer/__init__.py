"""HumanFixer: a small video diffusion network that restores the 18 orbit views of a coarse avatar.

The network and its conditioning follow HumanDreamer-X: Stable Video Diffusion's UNet, face tokens in the
cross-attention, the attention modulation of its eq. 5 and 6. What it predicts is how the true views differ from the
coarse ones.
"""

from __future__ import annotations
