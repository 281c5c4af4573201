"""The notebook as a page: its text, its code, and what its cells gave."""

import html
import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "quickstart.ipynb"


def notebook_page() -> str:
    """Markdown of the notebook, pictures inside."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    parts = ["[Download this page as a notebook](quickstart.ipynb)"]
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += map(_output, cell.get("outputs", []))
    parts[:2] = parts[1::-1]  # the title comes first
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="What the cell shows" src="data:image/png;base64,{picture}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"<pre><code>{html.escape(text.strip())}</code></pre>"
