"""``lighten export``: write the files of a run for their runtimes.

JSON: ``{"run", "files"}`` with ``{"file", "bytes", "sha256"}`` of each file, by its name in the run folder.
"""

import argparse
from typing import Any

from lighten.cli.arguments import RUN, add_command, add_run, errors_of_run, shown_progress
from lighten.cli.output import print_json, stdout_aside


def add_parser(commands: Any) -> None:
    """Add the command."""
    summary = "write student.onnx, teacher.onnx and dense.onnx"
    add_run(add_command(commands, "export", summary, _export, example=f"{RUN} --json", json=True))


def _export(arguments: argparse.Namespace) -> None:
    run = arguments.run
    with errors_of_run(run, "export"):
        from lighten.delivery.export.targets import export_run
        from lighten.delivery.folders.run import sha256

        with stdout_aside(arguments.json), shown_progress("export") as on_progress:
            paths = export_run(run, on_progress=on_progress)
        files = [{"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths]
        if arguments.json:
            print_json({"run": str(run), "files": files})
        else:
            print("\n".join(f"{run / str(made['file'])} ({made['bytes']:,} bytes)" for made in files))
