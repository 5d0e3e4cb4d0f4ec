"""Sessions of onnxruntime."""

from pathlib import Path
from typing import Any

from lighten.errors import UserError, first_line


def open_session(model: Path | bytes, name: Path, *, threads: int, optimise: bool = True, precise: bool = False) -> Any:
    """Open an onnxruntime session.

    Args:
        model: the file, or a serialised model.
        name: what an error message calls it.
        threads: intra-op threads.
        optimise: let onnxruntime fuse and rewrite the graph.
        precise: let no sum of 8-bit products saturate, as they may on x86 processors without VNNI instructions.

    Raises:
        UserError: if onnxruntime cannot read the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = first_line(error)
        raise UserError(f"{name}: onnxruntime cannot read it ({reason}); export it again") from None
