"""Arrays inside of a frame that nothing may read or write."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# NaNs that no arithmetic produces: so a NaN that is written into a frame is noticed as well
_NAN_BITS = {"float16": 0x7ECD, "bfloat16": 0x7FCD, "float32": 0x7FC0CDCD, "float64": 0x7FF8CDCDCDCDCDCD}


class Frame:
    """An array placed inside of a larger one that is full of NaN, or of extreme integers.

    What reads outside of the array computes with NaN, or looks for a place that is not there; what writes outside of
    it changes the frame.

    Parameters
    ----------
    array : array, any shape
        Floating (half precision too) or integer.
    margin : int, optional
        Elements of the frame on either side of each axis.
    contiguous : bool, optional
        Leave the rows of the array side by side, as tables of a plan must be, and put all of the frame before and
        after them.

    Attributes
    ----------
    view : array
        The array's copy inside of the frame: what to hand to the code under test.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import attention
    >>> from subquad.testing import Frame
    >>> x = Frame(np.ones((10, 8)))
    >>> bool(np.isfinite(attention(x.view, x.view, x.view)).all())
    True
    >>> x.assert_untouched()
    """

    def __init__(self, array: npt.ArrayLike, margin: int = 5, *, contiguous: bool = False) -> None:
        given = np.asarray(array)
        shape = (given.size,) if contiguous else given.shape
        words = np.empty([n + 2 * margin for n in shape], np.dtype(f"u{given.dtype.itemsize}"))
        words[...] = self._fill = np.array(_extremes(given.dtype, words.shape), words.dtype)
        buffer, window = words.view(given.dtype), tuple(slice(margin, margin + n) for n in shape)
        self.view: Array = buffer[window].reshape(given.shape) if contiguous else buffer[window]
        self.view[...] = given
        self._words, self._frame = words, np.ones(words.shape, bool)
        self._frame[window] = False

    def assert_untouched(self) -> None:
        """Raise AssertionError where an element of the frame has changed."""
        touched = np.count_nonzero((self._words != self._fill) & self._frame)
        if touched:
            raise AssertionError(f"{touched} elements outside of the array were written")


def _extremes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """What fills a frame, as bits: NaN, or the largest and the smallest integer by turns."""
    if dtype.name in _NAN_BITS:
        return _NAN_BITS[dtype.name]
    limits = np.array([np.iinfo(dtype).max, np.iinfo(dtype).min], dtype).view(f"u{dtype.itemsize}")
    return limits[np.indices(shape).sum(axis=0) % 2]
