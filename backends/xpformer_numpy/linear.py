"""The affine map with its bias added in place and its weight's gradient written into the slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional import linear as portable
from xpformer.functional._op import Need, Pair, needs
from xpformer_numpy._common import are_floats, column_sums, rows_of, slot
