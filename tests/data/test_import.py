from __future__ import annotations

import subprocess
import sys


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    code = "import sys, xpformer.data; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"PIL", "pooch", "requests", "rich", "sklearn", "scipy", "platformdirs", "torch"} & set(loaded)
