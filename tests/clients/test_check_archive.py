"""The checker itself: green on a small archive, red on every way to spoil it. Run by tests/clients.rs."""

import copy
import csv
import pathlib
import tempfile
import unittest

import deltalake
import pyarrow as pa

import check_archive

# (kind, partition, offset, video)
ROWS = [
    ("event", 0, 0, "v1"),
    ("event", 0, 1, "v2"),
    ("duplicate", 0, 2, "v1"),
    ("event", 1, 0, "v1"),
    ("quarantined", 1, 1, None),
    ("event", 1, 3, "v1"),  # offset 2 is a gap: an aborted record
]
EXPECTED = {
    "stream": "views",
    "kinds": {"event": 4, "duplicate": 1, "quarantined": 1},
    "partitions": {"0": {"records": 3, "end": 3}, "1": {"records": 3, "end": 4}},
    "key": "video_id",
}
ANSWERS = {"v1": 3, "v2": 1}


class CheckArchive(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def faults(self, rows=ROWS, expected=EXPECTED, answers=ANSWERS):
        data = pathlib.Path(tempfile.mkdtemp(dir=self.dir.name))
        # Two commits, as a real archive has many files.
        for part in (rows[:2], rows[2:]):
            kinds, partitions, offsets, videos = zip(*part)
            table = pa.table({
                "_kind": pa.array(kinds, pa.string()),
                "_topic": pa.array(["views"] * len(part), pa.string()),
                "_partition": pa.array(partitions, pa.int32()),
                "_offset": pa.array(offsets, pa.int64()),
                "video_id": pa.array(videos, pa.string()),
            })
            deltalake.write_deltalake(str(data / "archive" / "views"), table, mode="append")
        path = data / "answers.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(answers.items())
        return check_archive.check(data, {**expected, "answers": str(path)})[0]

    def test_an_exact_archive_has_no_faults(self):
        self.assertEqual(self.faults(), [])

    def test_a_missing_row_is_seen(self):
        for number in range(len(ROWS)):
            self.assertNotEqual(self.faults(rows=ROWS[:number] + ROWS[number + 1:]), [], number)

    def test_a_row_stored_twice_is_seen(self):
        for number, row in enumerate(ROWS):
            self.assertNotEqual(self.faults(rows=[*ROWS, row]), [], number)

    def test_a_row_in_the_place_of_another_is_seen(self):
        moved = [*ROWS[:1], ("event", 0, 0, "v2"), *ROWS[2:]]
        self.assertTrue(any("stored twice" in fault for fault in self.faults(rows=moved)))

    def test_a_changed_kind_is_seen(self):
        changed = [*ROWS[:2], ("event", 0, 2, "v1"), *ROWS[3:]]
        self.assertTrue(any("kind duplicate" in fault for fault in self.faults(rows=changed)))

    def test_a_wrong_answer_is_seen(self):
        for answers in ({"v1": 3, "v2": 2}, {"v1": 4}, {**ANSWERS, "v3": 1}):
            self.assertNotEqual(self.faults(answers=answers), [], answers)

    def test_a_wrong_end_is_seen(self):
        expected = copy.deepcopy(EXPECTED)
        expected["partitions"]["1"]["end"] = 5
        self.assertNotEqual(self.faults(expected=expected), [])


if __name__ == "__main__":
    unittest.main()
