"""A picture with something to drag: the crop's frame on the thumbnail, the divider between two pictures of the sheet."""

from pathlib import Path

import anywidget
import traitlets


class Stage(anywidget.AnyWidget):
    """A picture, and in an area of it a box to move by mouse, touch or arrow keys. Lengths are in a unit of its own;
    everything but ``jpeg`` and ``at`` holds from the start.
    """

    _esm, _css = (Path(__file__).with_name(f"panel.{kind}") for kind in ("js", "css"))

    jpeg = traitlets.Bytes().tag(sync=True)
    size = traitlets.Tuple().tag(sync=True)  # width and height of the picture
    area = traitlets.Tuple().tag(sync=True)  # where the box may go: left, top, width, height
    box = traitlets.Tuple().tag(sync=True)  # its width and height
    at = traitlets.Tuple((0, 0)).tag(sync=True)  # its left and top, counted from the area's
    cover = traitlets.Tuple().tag(sync=True)  # left and top of the part of the picture that is seen left of the box; (): none
    label = traitlets.Unicode().tag(sync=True)  # for who cannot see it
