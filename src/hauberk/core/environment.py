"""Where a number comes from: versions, date and machine."""

import platform
from datetime import UTC, datetime

import torch

from hauberk import __version__


def versions() -> dict[str, str]:
    """Return versions and date, for cards and results."""
    return {
        "hauberk": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine(device: torch.device) -> dict[str, str | int]:
    """Return the device and the number of CPU threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "name": name, "threads": torch.get_num_threads()}
