//! The stage of a scenario: directories, definitions, settings, and how to wait for something.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use viewledger::config::Config;

use crate::kafka::{Kafka, TOPIC};
use crate::server::Server;

/// What takes longer than this has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const CLICKS: &str = "\
-- One row is one click.
CREATE STREAM clicks (
    id   TEXT PRIMARY KEY,
    page TEXT NOT NULL,
    who  TEXT,
    at   TIMESTAMPTZ NOT NULL,
    ms   INTEGER,
    CONSTRAINT quick CHECK (ms BETWEEN 0 AND 1000),
    CONSTRAINT not_from_the_future CHECK (at <= _produced_at + INTERVAL '1 day'),
    CONSTRAINT not_ancient CHECK (at >= TIMESTAMPTZ '2005-01-01T00:00:00Z')
) WITH (topic = 'clicks', format = 'json', event_time = 'at');
";

/// Name and query of each view.
pub const VIEWS: [(&str, &str); 3] = [
    (
        "pages",
        "SELECT page, count(*) AS total, count(*) FILTER (WHERE ms > 500) AS slow, sum(ms) AS spent, \
         avg(ms) AS mean, approx_distinct(who) AS visitors FROM raw.clicks GROUP BY page",
    ),
    (
        "page_hours",
        "SELECT page, date_trunc('hour', at) AS hour, count(*) AS total, min(ms) AS fastest, max(ms) AS slowest, \
         max(at) AS last_at FROM raw.clicks GROUP BY page, date_trunc('hour', at)",
    ),
    (
        "visitors",
        "SELECT who, count(*) AS total, count(ms) AS timed FROM raw.clicks WHERE who IS NOT NULL GROUP BY who",
    ),
];

pub fn view_sql(name: &str, query: &str) -> String {
    format!("CREATE MATERIALIZED VIEW {name} WITH (refresh_every = '1 hour') AS {query};\n")
}

/// Answers with rows only while the merged view differs from its query over the records: never, in one snapshot.
pub fn difference(view: &str, query: &str) -> String {
    format!(
        "(SELECT 'merged' AS only, * FROM {view} EXCEPT SELECT 'merged' AS only, * FROM ({query}) q) \
         UNION ALL \
         (SELECT 'records' AS only, * FROM ({query}) q EXCEPT SELECT 'records' AS only, * FROM {view})"
    )
}

/// A sound record.
pub fn click(id: &str, page: &str, ms: i32) -> Option<Vec<u8>> {
    Some(format!(r#"{{"id":"{id}","page":"{page}","at":"2026-01-31T12:00:00Z","ms":{ms}}}"#).into_bytes())
}

/// Sound records with ids of their own, `prefix-0`, `prefix-1`, ..., of one partition.
pub fn clicks(prefix: &str, partition: i32, count: usize) -> Vec<(i32, Option<Vec<u8>>)> {
    (0..count).map(|n| (partition, click(&format!("{prefix}-{n}"), ["a", "b", "c"][n % 3], 10))).collect()
}

/// Everything but the server.
pub struct World {
    pub kafka: Kafka,
    /// Overrides, under their names in the environment.
    pub settings: BTreeMap<&'static str, String>,
    root: tempfile::TempDir,
}

impl World {
    /// With the stream `clicks`, its views and its topic.
    pub async fn new(partitions: i32) -> Self {
        let world = Self::without_topic().await;
        world.kafka.create_topic(TOPIC, partitions).await;
        world
    }

    pub async fn without_topic() -> Self {
        let world = Self::bare().await;
        world.write_sql("streams/clicks.sql", CLICKS);
        for (name, query) in VIEWS {
            world.write_sql(&format!("views/{name}.sql"), &view_sql(name, query));
        }
        world
    }

    /// Without definitions.
    pub async fn bare() -> Self {
        if std::env::var_os("RUST_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        }
        let kafka = Kafka::start().await;
        let root = tempfile::tempdir().unwrap();
        let settings = [
            ("VIEWLEDGER_SERVER_PG_PORT", "0".to_owned()),
            ("VIEWLEDGER_SERVER_FLIGHT_PORT", "0".to_owned()),
            ("VIEWLEDGER_SERVER_HTTP_PORT", "0".to_owned()),
            ("VIEWLEDGER_STORAGE_DATA_DIR", root.path().join("data").display().to_string()),
            ("VIEWLEDGER_SQL_DIR", root.path().join("sql").display().to_string()),
            ("VIEWLEDGER_KAFKA_BROKERS", kafka.bootstrap()),
            ("VIEWLEDGER_KAFKA_METADATA_INTERVAL", "300ms".to_owned()),
            ("VIEWLEDGER_INGEST_RECORD_BYTES_MAX", "1MiB".to_owned()),
            ("VIEWLEDGER_INGEST_MICRO_BATCH_INTERVAL", "20ms".to_owned()),
            ("VIEWLEDGER_ARCHIVE_COMMIT_INTERVAL", "200ms".to_owned()),
            ("VIEWLEDGER_ARCHIVE_RETRY_INTERVAL", "200ms".to_owned()),
        ];
        let world = Self { kafka, settings: settings.into(), root };
        std::fs::create_dir_all(world.path("data")).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write_sql(&self, file: &str, text: &str) {
        let path = self.path("sql").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn remove_sql(&self, file: &str) {
        std::fs::remove_file(self.path("sql").join(file)).unwrap();
    }

    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.settings.insert(name, value.into());
    }

    pub fn use_data_dir(&mut self, dir: &Path) {
        self.set("VIEWLEDGER_STORAGE_DATA_DIR", dir.display().to_string());
    }

    /// How many files of batch views there are.
    pub fn batch_files(&self) -> usize {
        let views = std::fs::read_dir(self.path("data/views")).unwrap();
        views.map(|view| std::fs::read_dir(view.unwrap().path()).unwrap().count()).sum()
    }

    pub fn config(&self) -> Config {
        let settings = self.settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Config::load(None, settings).unwrap()
    }

    /// With six records in a generation, and three more in the delta.
    pub async fn serve_filled(&self) -> Server {
        let server = self.serve().await;
        self.kafka.write(clicks("a", 0, 6));
        server.until_passed(6).await;
        server.until_archived().await;
        server.refresh().await;
        self.kafka.write(clicks("b", 1, 3));
        server.until_passed(9).await;
        server
    }

    /// The server inside this process; it must start.
    pub async fn serve(&self) -> Server {
        self.try_serve().await.unwrap_or_else(|error| panic!("the server does not start: {error:#}"))
    }

    pub async fn try_serve(&self) -> anyhow::Result<Server> {
        Server::start(self.config()).await
    }
}

/// Tries until it succeeds or [`PATIENCE`] is over; then fails with the last reason.
pub async fn eventually(what: &str, mut attempt: impl AsyncFnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(()) => return,
            Err(reason) => assert!(Instant::now() < deadline, "not in time: {what}: {reason}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
