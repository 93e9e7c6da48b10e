"""Built-in operations: removal and selection of layers, and six ways to merge them."""

from tailorlib_strategies.operations.dare import DARETIES, DARELinear
from tailorlib_strategies.operations.linear import Linear
from tailorlib_strategies.operations.removal import LayerRemoval
from tailorlib_strategies.operations.selection import LayerSelection
from tailorlib_strategies.operations.slerp import SLERP
from tailorlib_strategies.operations.task_arithmetic import TaskArithmetic
from tailorlib_strategies.operations.ties import TIES

__all__ = [
    "DARETIES",
    "SLERP",
    "TIES",
    "DARELinear",
    "LayerRemoval",
    "LayerSelection",
    "Linear",
    "TaskArithmetic",
]
