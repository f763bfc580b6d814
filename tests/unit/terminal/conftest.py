"""What a terminal shows."""

import io

from rich.console import RenderableType

from csi_job.terminal.console import console


def shown(renderable: RenderableType, width: int = 100) -> str:
    output = console()
    output.width, output.file, output.record = width, io.StringIO(), True
    output.print(renderable)
    return output.export_text()
