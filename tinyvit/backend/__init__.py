"""Arrays and where they live: the only place outside `kernels` that imports CuPy.

Everything above asks for arrays in terms of a device name ("cpu") and a `Namespace`; nothing above imports an array
library other than NumPy.

Order: words, checks, files, pages, terminal, html, process, threads, memory, devices, arrays, random, group.
"""

from .arrays import (
    BFLOAT16,
    FLOATING,
    NUMPY,
    Namespace,
    allow_tf32,
    as_array,
    checked_array,
    copy_of,
    erf_on_gpu,
    is_floating,
    namespace_of,
    narrowed,
    widened,
)
from .devices import (
    Array,
    address_of,
    can_capture_products,
    check_device,
    default_device,
    device_of,
    gpu,
    is_capturing,
    is_on_gpu,
    is_stand_in,
    on_one_device,
    select_gpu_of,
    set_default_device,
    shortcomings,
    to_device,
    to_device_of,
    to_host,
)
from .group import Group, Stopped, Sum, current_group, launched, set_current_group
from .memory import Memory
from .process import keep_freed_memory, limit_threads, product_libraries, product_threads, products_in_one_thread
from .random import Generator, default_generator, manual_seed

__all__ = [
    "BFLOAT16",
    "FLOATING",
    "NUMPY",
    "Array",
    "Generator",
    "Group",
    "Memory",
    "Namespace",
    "Stopped",
    "Sum",
    "address_of",
    "allow_tf32",
    "as_array",
    "can_capture_products",
    "check_device",
    "checked_array",
    "copy_of",
    "current_group",
    "default_device",
    "default_generator",
    "device_of",
    "erf_on_gpu",
    "gpu",
    "is_capturing",
    "is_floating",
    "is_on_gpu",
    "is_stand_in",
    "keep_freed_memory",
    "launched",
    "limit_threads",
    "manual_seed",
    "namespace_of",
    "narrowed",
    "on_one_device",
    "product_libraries",
    "product_threads",
    "products_in_one_thread",
    "select_gpu_of",
    "set_current_group",
    "set_default_device",
    "shortcomings",
    "to_device",
    "to_device_of",
    "to_host",
    "widened",
]
