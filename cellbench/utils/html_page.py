"""What the pages are made of: a template, and pictures inside it. A page needs no other file."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from cellbench.utils.errors import printable


def render(template: Path, **values: Any) -> str:
    """Fills a template; whatever text is put into it is escaped.

    Args:
        template: The template's file.
        values: What it names.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "svg": svg}
    return environment.get_template(template.name).render(values)


def share(entry: dict[str, Any]) -> str:
    """A metric with its interval."""
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def jpeg(image: np.ndarray) -> str:
    """An image, uint8 RGB (height, width, 3), as the text of a data URL."""
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def png(path: Path) -> str:
    """A PNG file as the text of a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def svg(figure: Figure) -> Markup:
    """A figure as SVG whose black is the page's ink, so that it suits a dark page as well."""
    text = io.StringIO()
    # The same page from the same data; and text that can be selected, in the page's own font.
    with rc_context({"svg.hashsalt": "cellbench", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn)  # each figure would have the same
    return Markup(drawn.replace("#000000", "currentColor").replace("#ffffff", "none"))


def plain(name: str) -> str:
    """Return a name for a figure: one printable line, without math between dollar signs."""
    return printable(" ".join(name.split())).replace("$", r"\$")
