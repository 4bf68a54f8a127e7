"""The shared cache: built once, whole or not at all, and never of yesterday's files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from images_for_tests import save

from ballot.data.image_cache import cache_folder, list_caches, prepare, remove_stale
from ballot.data.images import DecodingStore, FileSource, Geometry, MappedStore
from ballot.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GEOMETRY = Geometry(20, crop=40)


class Counting(FileSource):
    """Files that count how often they are decoded."""

    reads = 0

    def read(self, row):
        type(self).reads += 1
        return super().read(row)

    def take(self, rows):
        return Counting(self.root, [self.paths[r] for r in rows])


@pytest.fixture
def images(tmp_path):
    Counting.reads = 0
    root = tmp_path / "images"
    return Counting(root, [save(root / f"{k}.jpg", k).name for k in range(9)])


def opened(source, folder, geometry=GEOMETRY, limit=1.0):
    label = str(source.root)
    return prepare(source, geometry, label=label, cache=str(folder), limit_gib=limit, workers=1)


def all_of(prepared, count):
    return torch.cat([batch.clone() for batch in prepared.store.stream([np.arange(count)])])


def test_the_cache_holds_what_decoding_gives(images, tmp_path):
    cached, direct = opened(images, tmp_path / "c"), opened(images, "off")
    assert isinstance(cached.store, MappedStore) and isinstance(direct.store, DecodingStore)
    assert torch.equal(all_of(cached, 9), all_of(direct, 9))
    assert cached.digests == direct.digests


def test_the_second_trial_decodes_nothing(images, tmp_path):
    first = all_of(opened(images, tmp_path / "c"), 9)
    assert Counting.reads == 9
    second = all_of(opened(images, tmp_path / "c"), 9)
    assert Counting.reads == 9
    assert torch.equal(first, second)


def test_another_order_of_rows_shares_the_cache(images, tmp_path):
    first = all_of(opened(images, tmp_path / "c"), 9)
    order = np.array([4, 0, 8, 1, 2, 3, 7, 6, 5])
    other = all_of(opened(images.take(order), tmp_path / "c"), 9)
    assert Counting.reads == 9
    assert torch.equal(other, first[torch.from_numpy(order)])


def change(source):
    save(source.root / "3.jpg", 99)


def change_secretly(source):
    path = source.root / "3.jpg"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def add(source):
    source.paths.append(save(source.root / "9.jpg", 9).name)


def remove(source):
    (source.root / source.paths.pop()).unlink()


@pytest.mark.parametrize("happens", [change, change_secretly, add, remove])
def test_other_files_make_another_cache_and_the_old_one_stale(happens, images, tmp_path):
    opened(images, tmp_path / "c")
    happens(images)
    count = len(images)
    fresh = all_of(opened(images, tmp_path / "c"), count)
    assert torch.equal(fresh, all_of(opened(images, "off"), count))
    stale = remove_stale(tmp_path / "c")
    assert len(stale) == 1 and stale[0].stale
    assert [c.count for c in list_caches(tmp_path / "c")] == [count]
    before = Counting.reads
    opened(images, tmp_path / "c")
    assert Counting.reads == before, "the good cache was kept"


@pytest.mark.parametrize(
    "geometry", [Geometry(21, 40), Geometry(20, 39), Geometry(20), Geometry(20, edge=30)]
)
def test_crop_and_size_are_part_of_the_key(geometry, images, tmp_path):
    opened(images, tmp_path / "c")
    other = opened(images, tmp_path / "c", geometry)
    assert torch.equal(all_of(other, 9), all_of(opened(images, "off", geometry), 9))


def test_files_that_cannot_be_decoded_are_remembered(images, tmp_path):
    (images.root / "4.jpg").write_bytes((images.root / "4.jpg").read_bytes()[:-100])
    (images.root / "7.jpg").unlink()
    for _ in range(2):
        bad = opened(images, tmp_path / "c").bad
        assert sorted(bad) == [4, 7]
        assert "runcated" in bad[4] and bad[7] == "is not there"


def test_a_set_beyond_the_limit_is_decoded_anew_but_looked_at_once(images, tmp_path, caplog):
    for _ in range(2):
        prepared = opened(images, tmp_path / "c", limit=1e-6)
    assert isinstance(prepared.store, DecodingStore)
    assert "more than cache_limit" in caplog.text
    assert Counting.reads == 9
    assert len(prepared.digests) == 9 and all(prepared.digests)


def test_a_folder_that_cannot_be_written_is_done_without(images, tmp_path, caplog):
    (tmp_path / "file").touch()
    prepared = opened(images, tmp_path / "file")
    assert isinstance(prepared.store, DecodingStore)
    assert "decoded anew every epoch" in caplog.text


@pytest.mark.parametrize("name", ["images.u8", "digests.bin", "families.i32", "info.json"])
def test_a_damaged_cache_is_built_again(name, images, tmp_path):
    opened(images, tmp_path / "c")
    (victim,) = (tmp_path / "c").glob(f"*/{name}")
    os.truncate(victim, 50)
    assert torch.equal(all_of(opened(images, tmp_path / "c"), 9), all_of(opened(images, "off"), 9))


def test_files_that_change_during_the_build_stop_it(images, tmp_path):
    class Restless(Counting):
        def read(self, row):
            save(self.root / "0.jpg", Counting.reads + 50)
            return super().read(row)

        def take(self, rows):
            return Restless(self.root, [self.paths[r] for r in rows])

    with pytest.raises(UserError, match="changed while they were being decoded"):
        opened(Restless(images.root, images.paths), tmp_path / "c")
    assert not [path for path in (tmp_path / "c").iterdir() if path.is_dir()]


def test_the_users_cache_folder_is_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto") == tmp_path / "ballot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("auto") == Path.home() / ".cache" / "ballot"
    assert cache_folder("off") is None


BUILD = """
import logging, sys, time
sys.path[:0] = [{root!r}, {tests!r} + "/support", {tests!r} + "/data"]
from test_image_cache import FileSource, Geometry, all_of, opened
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(message)s")
class Slow(FileSource):
    def read(self, row):
        print("decoded", row, flush=True)
        time.sleep({pause})
        return super().read(row)
    def take(self, rows):
        return Slow(self.root, [self.paths[r] for r in rows])
source = Slow(Path({images!r}), [f"{{k}}.jpg" for k in range(9)])
print("sum", all_of(opened(source, {cache!r}), 9).sum().item())
"""


def builder(images, cache, pause):
    code = BUILD.format(
        root=str(ROOT),
        tests=str(ROOT / "tests"),
        images=str(images.root),
        cache=str(cache),
        pause=pause,
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_one_process_builds_and_the_other_waits_and_says_so(images, tmp_path):
    processes = [builder(images, tmp_path / "c", 0.5) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    decoded = [out.count("decoded") for out, _ in outputs]
    assert sorted(decoded) == [0, 9]
    waited = outputs[decoded.index(0)][1]
    assert f"waiting for process {processes[decoded.index(9)].pid}" in waited
    assert len({out.split("sum")[1] for out, _ in outputs}) == 1


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_half(images, tmp_path):
    process = builder(images, tmp_path / "c", 60.0)  # killed long before, on a busy machine too
    for line in process.stdout:
        if line.startswith("decoded 0"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = list_caches(tmp_path / "c")
    assert left.stale == "a build that did not finish", left
    start = time.monotonic()
    assert torch.equal(all_of(opened(images, tmp_path / "c"), 9), all_of(opened(images, "off"), 9))
    assert time.monotonic() - start < 5, "the dead process's lock is nobody's"
    assert not [cached for cached in list_caches(tmp_path / "c") if cached.stale]


PEAK = """
import sys
sys.path[:0] = [{root!r}, {tests!r} + "/support", {tests!r} + "/data"]
import resource
import numpy as np
from test_image_cache import FileSource, Geometry, Path, opened
source = FileSource(Path({images!r}), [f"{{k % 9}}.jpg" for k in range({count})])
prepared = opened(source, {cache!r}, Geometry(224))
rows = [np.arange(k, k + 32) for k in range(0, {count} - 32, 32)]
for images in prepared.store.stream(rows):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_images(images, tmp_path):
    peaks = []
    for count in (1000, 3000):  # 150 MB and 450 MB of pixels
        code = PEAK.format(
            root=str(ROOT),
            tests=str(ROOT / "tests"),
            images=str(images.root),
            count=count,
            cache=str(tmp_path / f"c{count}"),
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] - peaks[0] < 50e6
