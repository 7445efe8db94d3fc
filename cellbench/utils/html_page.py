"""HTML pages in one file: a template, with its pictures embedded."""

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
    """Fill a template; all text that is put into it is escaped.

    Args:
        template: The template's file.
        values: Values of its variables.
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
    """Format a metric with its interval."""
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def jpeg(image: np.ndarray) -> str:
    """Return an image, uint8 RGB, (H, W, 3), as a data URL."""
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def png(path: Path) -> str:
    """Return a PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def svg(figure: Figure) -> Markup:
    """Return a figure as SVG, with black replaced by the page's text colour, for dark pages too."""
    text = io.StringIO()
    # A fixed salt gives the same page for the same data. Text stays text: it can be selected, and
    # has the page's font.
    with rc_context({"svg.hashsalt": "cellbench", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    markup = text.getvalue()[text.getvalue().index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    markup = re.sub(r'<g id="[^"]*">', "<g>", markup)  # all figures would have the same ids
    return Markup(markup.replace("#000000", "currentColor").replace("#ffffff", "none"))


def plain(name: str) -> str:
    """Return a name as a figure shows it: one printable line, with dollar signs escaped."""
    return printable(" ".join(name.split())).replace("$", r"\$")
