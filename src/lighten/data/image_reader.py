"""Images of a stranger as a batch, as validation and test have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighten.data.checks import first_line
from lighten.data.decode import RESIZES, Frame, decode, frame_of, normalise, open_image, placed, turned_size
from lighten.errors import UserError
from lighten.utils.inputs import Call


@dataclass(frozen=True)
class ImageReader:
    """Reads image files, ``PIL`` images, bytes and arrays uint8 (height, width[, channels]).

    Attributes:
        frame: that they are brought to.
        mean: per channel, of values in [0, 1].
        std: likewise.
    """

    frame: Frame
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def read(self, sources: Sequence[Any]) -> Call:
        """Return images float32 (batch, channels, height, width) as the model's one argument.

        Raises:
            UserError: if one cannot be read, or there is none.
        """
        if not len(sources):
            raise UserError("no images are given, expected at least one path")
        return (normalise(np.stack([self._one(source) for source in sources]), self.mean, self.std),), {}

    def in_pixels(self, source: Any, marks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return marks on what a model saw as marks on the picture that it was made of, in that picture's pixels.

        Args:
            source: as ``read`` takes it.
            marks: ``box`` (x0, y0, x1, y1) or ``point`` (x, y) in shares of the model's input, and more.
        """
        height, width = turned_size(open_image(source))
        left, top, wide, tall = placed((height, width), self.frame)

        def there(place: Sequence[float]) -> list[float]:
            along = [width * (x - left) / wide for x in place[::2]]
            down = [height * (y - top) / tall for y in place[1::2]]
            found = (
                [round(min(max(x, 0.0), width), 1) for x in along],
                [round(min(max(y, 0.0), height), 1) for y in down],
            )
            return [value for pair in zip(*found, strict=True) for value in pair]

        moved = [
            {key: there(value) if key in ("box", "point") else value for key, value in mark.items()} for mark in marks
        ]
        return [mark for mark in moved if "box" not in mark or _has_area(mark["box"])]

    def _one(self, source: Any) -> np.ndarray:
        try:
            return decode(open_image(source), self.frame)
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{source} is not there; give the path of an image") from error
        except IsADirectoryError as error:
            raise UserError(f"{source} is a folder, expected an image; give its files, as {source}/*") from error
        except Exception as error:
            what = source if isinstance(source, str) or hasattr(source, "__fspath__") else f"a {type(source).__name__}"
            raise UserError(f"{what} cannot be read as an image ({first_line(error)}); give another file") from error


def _has_area(box: Sequence[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def reader_of(settings: Mapping[str, Any]) -> ImageReader:
    """Return the reader that ``OwnImageData.preprocessing`` describes.

    Raises:
        UserError: if settings do not fit each other.
        KeyError: if one is missing.
    """
    frame = frame_of(settings)
    mean, std = (tuple(float(value) for value in settings[key]) for key in ("mean", "std"))
    fit = frame.resize in RESIZES and frame.channels in (1, 3) and len(mean) == len(std) == frame.channels
    if not fit or min(*frame.size, frame.white) < 1 or not min(std) > 0:
        raise UserError("preprocessing of images has parts that do not fit each other; take it from config.json")
    return ImageReader(frame, mean, std)
