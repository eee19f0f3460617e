"""Errors of the simulator, one tree under the root of `edge_asr`.

    EdgeAsrError
    └── SimulationError           70  anything below
        ├── DeviceError           71  a profile that is missing, misspelt or breaks the schema
        ├── OnnxFileError         72  not an ONNX file, truncated, cyclic, or refused by the loader
        ├── OperatorError         73  an operator whose cost nobody has described
        ├── ShapeError            74  a dimension that nothing resolves
        ├── BudgetError           75  a budget, period or load that is no number above zero
        ├── PlanError             76  buffers that cannot be laid out
        ├── CalibrationError      77  too few or useless measurements
        └── EnforcementError      78  the limited process could not be run

The exit codes of a *broken budget* (80 … 84) are verdicts, no errors: see `firmware_sim.verdict`.
"""

from edge_asr.errors import SimulationError


class DeviceError(SimulationError):
    """A device profile is unknown or breaks the schema."""

    exit_code = 71


class OnnxFileError(SimulationError):
    """The file is not a usable ONNX graph."""

    exit_code = 72


class OperatorError(SimulationError):
    """The graph holds an operator that the cost model does not know."""

    exit_code = 73


class ShapeError(SimulationError):
    """A shape of the graph stays open."""

    exit_code = 74


class BudgetError(SimulationError):
    """A budget, load or period is missing, negative or zero."""

    exit_code = 75


class PlanError(SimulationError):
    """Buffers with impossible sizes or lifetimes."""

    exit_code = 76


class CalibrationError(SimulationError):
    """Measurements that cannot carry a fit."""

    exit_code = 77


class EnforcementError(SimulationError):
    """The limited process could not be started or observed."""

    exit_code = 78
