//! Random records under a random schedule: at every step each merged view is its query over the records.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::kafka::ToWrite;
use crate::server::Server;
use crate::world::{VIEWS, World, difference};

const PARTITIONS: i32 = 3;

/// What `pages` may be defined as; the first is that of its file.
const DEFINITIONS: [&str; 3] = [
    VIEWS[0].1,
    "SELECT page, count(*) AS total, max(ms) AS slowest, avg(ms) AS mean FROM raw.clicks GROUP BY page",
    "SELECT page, count(*) AS total, count(DISTINCT who) AS visitors FROM raw.clicks GROUP BY page HAVING count(*) > 2",
];

/// The versions of `pages`, as they must be.
#[derive(Default)]
struct Versions {
    /// Indices into `DEFINITIONS`, in the order of their numbers.
    known: Vec<usize>,
    current: usize,
    standby: Option<usize>,
}

impl Versions {
    fn name(&self, definition: usize) -> String {
        let at = self.known.iter().position(|known| *known == definition).unwrap();
        format!("pages@{}", at + 1)
    }

    async fn replace(&mut self, server: &Server, definition: usize) {
        let query = DEFINITIONS[definition];
        server.rows(&format!("CREATE OR REPLACE MATERIALIZED VIEW pages AS {query}")).await;
        if !self.known.contains(&definition) {
            self.known.push(definition);
        }
        if self.current != definition {
            self.standby = Some(definition);
        }
    }

    async fn promote(&mut self, server: &Server) {
        let Some(next) = self.standby else { return };
        let name = self.name(next);
        let number = name.rsplit('@').next().unwrap();
        server.rows(&format!("ALTER MATERIALIZED VIEW pages SET (version = {number})")).await;
        self.standby = Some(std::mem::replace(&mut self.current, next));
    }

    async fn drop_standby(&mut self, server: &Server) {
        let Some(dropped) = self.standby.take() else { return };
        let name = self.name(dropped);
        server.rows(&format!("DROP MATERIALIZED VIEW \"{name}\"")).await;
        assert!(server.try_rows(&format!("SELECT * FROM \"{name}\"")).await.is_err());
    }

    async fn assert_equivalent(&self, server: &Server) {
        let nothing = Vec::<String>::new();
        for (view, query) in &VIEWS[1..] {
            assert_eq!(server.rows(&difference(view, query)).await, nothing, "view {view}");
        }
        assert_eq!(server.rows(&difference("pages", DEFINITIONS[self.current])).await, nothing);
        for kept in self.standby.iter().chain([&self.current]) {
            let name = self.name(*kept);
            assert_eq!(
                server.rows(&difference(&format!("\"{name}\""), DEFINITIONS[*kept])).await,
                nothing,
                "{name}"
            );
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<Record>),
    /// Waits until what was written is counted.
    Settle,
    /// Waits until it is archived too.
    Commit,
    Refresh,
    RefreshFully,
    Restart,
    /// Builds this one of `DEFINITIONS` beside the one that is read, or takes it up again.
    Replace(usize),
    /// Makes the version on standby the one that is read.
    Promote,
    DropStandby,
}

/// Few ids, so that many are duplicates.
#[derive(Debug, Clone)]
struct Record {
    partition: i32,
    id: u8,
    page: u8,
    who: Option<u8>,
    ms: Option<i16>,
    hour: u8,
    broken: bool,
}

impl Record {
    fn is_sound(&self) -> bool {
        !self.broken && self.ms.is_none_or(|ms| (0..=1000).contains(&ms))
    }

    fn to_write(&self) -> ToWrite {
        let Self { id, page, hour, broken, .. } = self;
        let who = self.who.map_or("null".to_owned(), |who| format!("\"w{who}\""));
        let ms = self.ms.map_or("null".to_owned(), |ms| ms.to_string());
        let end = if *broken { "" } else { "}" };
        let json = format!(
            r#"{{"id":"{id}","page":"p{page}","who":{who},"at":"2026-01-31T{hour:02}:30:00Z","ms":{ms}{end}"#
        );
        (self.partition, Some(json.into_bytes()))
    }
}

fn record() -> impl Strategy<Value = Record> {
    let ms = prop_oneof![1 => Just(None), 8 => (0..=1000_i16).prop_map(Some), 1 => (-5..2000_i16).prop_map(Some)];
    (0..PARTITIONS, any::<u8>(), 0..5_u8, prop::option::of(0..20_u8), ms, 0..24_u8, prop::bool::weighted(0.05))
        .prop_map(|(partition, id, page, who, ms, hour, broken)| Record {
            partition,
            id,
            page,
            who,
            ms,
            hour,
            broken,
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(record(), 1..120).prop_map(Step::Write),
        2 => Just(Step::Settle),
        2 => Just(Step::Commit),
        3 => Just(Step::Refresh),
        1 => Just(Step::RefreshFully),
        1 => Just(Step::Restart),
        1 => (0..DEFINITIONS.len()).prop_map(Step::Replace),
        1 => Just(Step::Promote),
        1 => Just(Step::DropStandby),
    ]
}

/// `PROPTEST_CASES` sets another number of cases.
#[test]
fn merged_views_are_their_queries_at_every_step_of_any_schedule() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(30);
    let config = Config { cases, max_shrink_iters: 40, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let schedules = prop::collection::vec(step(), 2..12);
    TestRunner::new(config)
        .run(&schedules, |schedule| {
            runtime.block_on(carry_out(schedule));
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

async fn carry_out(schedule: Vec<Step>) {
    let mut world = World::new(PARTITIONS).await;
    // Small batches and epochs: many cuts.
    world.set("VIEWLEDGER_INGEST_MICRO_BATCH_ROWS_MAX", "20");
    world.set("VIEWLEDGER_INGEST_MICRO_BATCH_INTERVAL", "1ms");
    world.set("VIEWLEDGER_ARCHIVE_COMMIT_INTERVAL", "30ms");
    let mut server = world.serve().await;
    let mut written: Vec<Record> = Vec::new();
    let mut versions = Versions { known: vec![0], ..Versions::default() };
    for step in schedule {
        match step {
            Step::Write(records) => {
                world.kafka.write(records.iter().map(Record::to_write));
                written.extend(records);
            }
            Step::Settle => server.until_passed(written.len()).await,
            Step::Commit => {
                server.until_passed(written.len()).await;
                server.until_archived().await;
            }
            Step::Refresh => server.refresh().await,
            Step::Replace(definition) => versions.replace(&server, definition).await,
            Step::Promote => versions.promote(&server).await,
            Step::DropStandby => versions.drop_standby(&server).await,
            Step::RefreshFully => server.refresh_fully().await,
            Step::Restart => {
                server.stop().await;
                server = world.serve().await;
            }
        }
        versions.assert_equivalent(&server).await;
    }
    server.until_passed(written.len()).await;
    versions.assert_equivalent(&server).await;
    let sound: Vec<&Record> = written.iter().filter(|record| record.is_sound()).collect();
    let counted = sound.iter().map(|record| record.id).collect::<BTreeSet<_>>().len();
    let (duplicates, quarantined) = (sound.len() - counted, written.len() - sound.len());
    let books = "SELECT coalesce(sum(counted), 0), coalesce(sum(duplicate), 0), coalesce(sum(quarantined), 0), \
                 coalesce(sum(gaps), 0) FROM system.conservation";
    assert_eq!(server.one(books).await, format!("{counted}|{duplicates}|{quarantined}|0"));
    assert_eq!(server.one("SELECT coalesce(sum(total), 0) FROM page_hours").await, counted.to_string());
    server.stop().await;
}
