//! What `generate` wrote down about each acknowledged record, and the answers that follow from it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// The sums a reader must see for one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) views: i64,
    pub(crate) revenue_views: i64,
    pub(crate) watch_seconds: i64,
}

/// What one partition holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Records that a committed reader gets.
    pub(crate) records: i64,
    /// One past the last of them.
    pub(crate) end: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) videos: BTreeMap<String, Tally>,
    pub(crate) partitions: BTreeMap<i32, Extent>,
    pub(crate) counted: i64,
    pub(crate) duplicates: i64,
    pub(crate) quarantined: i64,
    pub(crate) aborted: i64,
}

/// Reads the truth about `topic` out of all `files`.
pub(crate) fn read(files: &[PathBuf], topic: &str) -> Expected {
    let mut reader = Reader::default();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        reader.add(file, &text, topic);
    }
    reader.expected
}

#[derive(Default)]
struct Reader {
    expected: Expected,
    ids: HashSet<String>,
    places: HashSet<(i32, i64)>,
}

impl Reader {
    fn add(&mut self, file: &Path, text: &str, topic: &str) {
        let mut lines = text.lines().enumerate();
        let header: Vec<&str> = lines.next().map(|(_, line)| line.split(',').collect()).unwrap_or_default();
        let place_of = |name: &str| {
            header
                .iter()
                .position(|column| *column == name)
                .unwrap_or_else(|| panic!("{} has no column {name}, only {}", file.display(), header.join(", ")))
        };
        let columns =
            ["topic", "partition", "offset", "id", "kind", "video_id", "view_duration", "revenue_eligible"]
                .map(place_of);
        for (number, line) in lines {
            let fields: Vec<&str> = line.split(',').collect();
            let whole = fields.len() == header.len() && !line.contains('"');
            assert!(whole, "{}:{}: not {} plain fields: {line}", file.display(), number + 1, header.len());
            let record = columns.map(|column| fields[column]);
            if record[0] == topic {
                self.add_record(record)
                    .unwrap_or_else(|what| panic!("{}:{}: {what}: {line}", file.display(), number + 1));
            }
        }
    }

    fn add_record(&mut self, record: [&str; 8]) -> Result<(), String> {
        let [_, partition, offset, id, kind, video, duration, revenue] = record;
        if kind == "aborted" {
            self.expected.aborted += 1;
            return Ok(());
        }
        let (partition, offset): (i32, i64) = (parse(partition)?, parse(offset)?);
        if !self.places.insert((partition, offset)) {
            return Err("the same offset twice".into());
        }
        let extent = self.expected.partitions.entry(partition).or_default();
        extent.records += 1;
        extent.end = extent.end.max(offset + 1);
        match kind {
            "malformed" => self.expected.quarantined += 1,
            "event" | "late" | "undeclared" | "duplicate" if !self.ids.insert(id.to_owned()) => {
                self.expected.duplicates += 1;
            }
            "event" | "late" | "undeclared" | "duplicate" => {
                self.expected.counted += 1;
                let tally = self.expected.videos.entry(video.to_owned()).or_default();
                tally.views += 1;
                tally.revenue_views += i64::from(parse_or_null::<bool>(revenue)?.unwrap_or(false));
                tally.watch_seconds += parse_or_null::<i64>(duration)?.unwrap_or(0);
            }
            _ => return Err(format!("unknown kind {kind}")),
        }
        Ok(())
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("cannot read {text:?}"))
}

/// A null counts in no sum; the truth file leaves its place empty.
fn parse_or_null<T: std::str::FromStr>(text: &str) -> Result<Option<T>, String> {
    if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

#[test]
fn truth_counts_each_id_once_and_no_aborted_or_malformed_record() {
    let text = "\
kind,topic,partition,offset,id,video_id,view_duration,revenue_eligible,timestamp
event,t,0,0,a,v1,10,true,1
duplicate,t,1,0,a,v1,10,true,1
late,t,1,1,b,v1,5,false,1
undeclared,t,1,2,c,v2,7,true,1
event,t,1,3,f,v2,,,1
malformed,t,0,1,,,,,
aborted,t,0,2,d,v2,9,true,1
duplicate,t,0,4,d,v2,9,true,1
event,other,0,0,e,v1,1,true,1
";
    let mut reader = Reader::default();
    reader.add(Path::new("truth"), text, "t");
    let expected = Expected {
        videos: BTreeMap::from([
            ("v1".into(), Tally { views: 2, revenue_views: 1, watch_seconds: 15 }),
            ("v2".into(), Tally { views: 3, revenue_views: 2, watch_seconds: 16 }),
        ]),
        partitions: BTreeMap::from([(0, Extent { records: 3, end: 5 }), (1, Extent { records: 4, end: 4 })]),
        counted: 5,
        duplicates: 1,
        quarantined: 1,
        aborted: 1,
    };
    assert_eq!(reader.expected, expected);
}
