"""``edge-ad devices``."""

from __future__ import annotations

import click

from edge_ad.cli.options import json_option, write_json, write_table
from edge_ad.errors import EngineMissingError, pip_install
from edge_ad.records import to_plain
from edge_ad.runtime.devices import list_devices


@click.command("devices")
@json_option
def command(json_target: str | None) -> None:
    """List what there is to run on.

    The name is what --device takes. Of the precisions, the first is the device's default.
    """
    found = list_devices()
    if not found:
        raise EngineMissingError(f"no inference engine is installed; {pip_install('openvino')}")
    if json_target is not None:
        write_json(json_target, to_plain(found))
    if json_target != "-":
        rows = [(device.name, device.engine, ", ".join(device.precisions), device.full_name) for device in found]
        write_table([("device", "engine", "precisions", "full name"), *rows])
