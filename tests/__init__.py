import os

import pytest

pytest.register_assert_rewrite("tests.library")

# Tests run beside each other, one on each core: threads of several would wait for each other, three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
