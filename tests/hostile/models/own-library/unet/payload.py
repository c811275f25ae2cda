"""Code of a stranger: whoever imports it leaves a mark."""

import os
from pathlib import Path

Path(os.environ["EFFACE_HOSTILE_MARK"]).write_text("ran")
