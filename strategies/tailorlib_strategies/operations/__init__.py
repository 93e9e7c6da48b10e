"""Built-in operations: removal and selection of layers, their folding, and the ways to merge them."""

from tailorlib_strategies.operations.arcee_fusion import ArceeFusion
from tailorlib_strategies.operations.breadcrumbs import Breadcrumbs, BreadcrumbsTIES
from tailorlib_strategies.operations.dare import DARETIES, DARELinear
from tailorlib_strategies.operations.della import DELLA, DELLALinear
from tailorlib_strategies.operations.folding import LayerFolding
from tailorlib_strategies.operations.informed import Fisher, RegMean
from tailorlib_strategies.operations.karcher import Karcher
from tailorlib_strategies.operations.linear import Linear
from tailorlib_strategies.operations.model_stock import ModelStock
from tailorlib_strategies.operations.multislerp import MultiSLERP, TaskMultiSLERP
from tailorlib_strategies.operations.nearswap import NearSwap
from tailorlib_strategies.operations.nuslerp import NuSLERP, TaskNuSLERP
from tailorlib_strategies.operations.ram import RAM, RAMPlus
from tailorlib_strategies.operations.removal import LayerRemoval
from tailorlib_strategies.operations.residual_scale import ResidualScale
from tailorlib_strategies.operations.sce import SCE
from tailorlib_strategies.operations.selection import LayerSelection
from tailorlib_strategies.operations.slerp import SLERP
from tailorlib_strategies.operations.task_arithmetic import TaskArithmetic
from tailorlib_strategies.operations.ties import TIES

__all__ = [
    "DARETIES",
    "DELLA",
    "RAM",
    "SCE",
    "SLERP",
    "TIES",
    "ArceeFusion",
    "Breadcrumbs",
    "BreadcrumbsTIES",
    "DARELinear",
    "DELLALinear",
    "Fisher",
    "Karcher",
    "LayerFolding",
    "LayerRemoval",
    "LayerSelection",
    "Linear",
    "ModelStock",
    "MultiSLERP",
    "NearSwap",
    "NuSLERP",
    "RAMPlus",
    "RegMean",
    "ResidualScale",
    "TaskArithmetic",
    "TaskMultiSLERP",
    "TaskNuSLERP",
]
