//! What readers see of the views under test: the one place that knows their columns.

use crate::server::{Reader, number};
use crate::truth::Tally;
use crate::verdict::{Answers, LedgerRow, Violation};

/// The stream under test.
pub(crate) const STREAM: &str = "video_views";

/// The merged view and its halves, all from one snapshot because it is one query.
const HALVES: &str = "\
    SELECT 'merged' AS part, sum(total_views) AS views FROM public.video_views \
    UNION ALL SELECT 'batch', sum(total_views) FROM batch.video_views \
    UNION ALL SELECT 'speed', sum(total_views) FROM speed.video_views";

/// How many videos are not the sum of their halves.
const TORN: &str = "\
    SELECT count(*) AS n FROM public.video_views AS m \
    LEFT JOIN batch.video_views AS b ON b.video_id = m.video_id \
    LEFT JOIN speed.video_views AS s ON s.video_id = m.video_id \
    WHERE m.total_views <> coalesce(b.total_views, 0) + coalesce(s.total_views, 0)";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Halves {
    pub(crate) merged: i64,
    pub(crate) batch: i64,
    pub(crate) speed: i64,
}

impl Halves {
    pub(crate) async fn read(reader: &Reader) -> Result<Halves, tokio_postgres::Error> {
        let rows = reader.rows(HALVES).await?;
        let part = |name: &str| {
            let row = rows.iter().find(|row| row.get("part") == Some(name));
            row.map_or_else(|| panic!("no row {name} in the answer"), |row| number(row, "views"))
        };
        Ok(Halves { merged: part("merged"), batch: part("batch"), speed: part("speed") })
    }

    pub(crate) fn add_up(self) -> Result<(), Violation> {
        let Halves { merged, batch, speed } = self;
        if merged == batch + speed { Ok(()) } else { Err(Violation::Halves { merged, batch, speed }) }
    }
}

/// Whether the halves add up row by row.
pub(crate) async fn torn_videos(reader: &Reader) -> Result<i64, tokio_postgres::Error> {
    let rows = reader.rows(TORN).await?;
    Ok(rows.first().map_or(0, |row| number(row, "n")))
}

impl Answers {
    pub(crate) async fn read(reader: &Reader) -> Result<Answers, tokio_postgres::Error> {
        let total = reader.rows("SELECT count(*) AS n FROM raw.video_views").await?;
        let quarantined = reader.rows("SELECT count(*) AS n FROM quarantine.video_views").await?;
        let videos = reader
            .rows("SELECT video_id, total_views, revenue_views, watch_seconds FROM video_views")
            .await?
            .iter()
            .map(|row| {
                let tally = Tally {
                    views: number(row, "total_views"),
                    revenue_views: number(row, "revenue_views"),
                    watch_seconds: number(row, "watch_seconds"),
                };
                (row.get("video_id").unwrap_or_default().to_owned(), tally)
            })
            .collect();
        Ok(Answers {
            total: total.first().map_or(0, |row| number(row, "n")),
            quarantined: quarantined.first().map_or(0, |row| number(row, "n")),
            videos,
            ledger: ledger(reader).await?,
        })
    }
}

async fn ledger(reader: &Reader) -> Result<Vec<LedgerRow>, tokio_postgres::Error> {
    let rows = reader.rows(&format!("SELECT * FROM system.conservation WHERE stream = '{STREAM}'")).await?;
    Ok(rows
        .iter()
        .map(|row| LedgerRow {
            partition: i32::try_from(number(row, "partition")).expect("a partition number is small"),
            passed: number(row, "passed"),
            counted: number(row, "counted"),
            duplicates: number(row, "duplicate"),
            quarantined: number(row, "quarantined"),
            gaps: number(row, "gaps"),
        })
        .collect())
}
