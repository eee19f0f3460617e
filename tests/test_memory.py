"""Pages go back to the system, and nothing that a process has written is lost."""

import sys

import numpy as np
import pytest

from edge_asr.features import fbank
from edge_asr.memory import _clean_mappings, give_back_code, give_back_heap

SMAPS = """\
00400000-00402000 r-xp 00000000 fe:00 11                 /lib/code.so
Rss:                   8 kB
Anonymous:             0 kB
00402000-00403000 r--p 00002000 fe:00 11                 /lib/code.so
Anonymous:             4 kB
00403000-00404000 rw-p 00003000 fe:00 11                 /lib/code.so
Anonymous:             0 kB
00404000-00405000 r-xp 00000000 00:00 0                  [vdso]
Anonymous:             0 kB
00405000-00406000 r--s 00000000 00:01 12                 /memfd:graph (deleted)
Anonymous:             0 kB
00406000-00407000 r--p 00000000 fe:00 13                 /lib/with space.so
Anonymous:             0 kB
"""


def test_only_private_read_only_pages_of_files_that_nobody_wrote_to_are_given_back():
    assert list(_clean_mappings(SMAPS)) == [(0x400000, 0x402000), (0x406000, 0x407000)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is given back")
def test_a_process_goes_on_as_before():
    samples = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    before = fbank(samples)
    give_back_heap()
    give_back_code()
    np.testing.assert_array_equal(fbank(samples), before)
