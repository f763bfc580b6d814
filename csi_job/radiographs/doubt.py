"""Images that can be read, but hardly show a radiograph."""

import numpy as np

# Far from any radiograph: of 127 real ones, at most 41 % was black and white, and the flattest had 95 levels.
_BLACK_UP_TO, _WHITE_FROM, _NEARLY_ALL = 16, 239, 0.9
_PURE_BLACK = 8  # with its counterpart of white: collimation, padding and markers, which do not count as levels
_FLAT_BELOW = 32  # grey levels between the 5th and the 95th percentile


def doubt_about(pixels_HW: np.ndarray) -> str:
    """Return why a uint8 image hardly shows a radiograph and someone should look at it, or ""."""
    counts = np.bincount(pixels_HW.ravel(), minlength=256) / pixels_HW.size
    black, white = counts[: _BLACK_UP_TO + 1].sum(), counts[_WHITE_FROM:].sum()
    if max(black, white) >= _NEARLY_ALL:
        return f"nearly all {'black' if black > white else 'white'}"
    if black + white >= _NEARLY_ALL:
        return "nearly only black and white"
    between = counts[_PURE_BLACK + 1 : 255 - _PURE_BLACK].cumsum()
    darkest, brightest = np.searchsorted(between, between[-1] * np.array([0.05, 0.95]))
    return "nearly flat" if brightest - darkest < _FLAT_BELOW else ""
