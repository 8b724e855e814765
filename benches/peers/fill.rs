//! Archives generated records without Kafka: through the server's own decoder, key index and epoch writer, in
//! epochs of `archive.commit_bytes_max`, so that the files are those a server at full speed writes.

use anyhow::Result;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::{filter_record_batch, not};
use datafusion::arrow::datatypes::Int32Type;
use datafusion::arrow::record_batch::RecordBatch;
use viewledger::archive::dedup::KeyIndex;
use viewledger::archive::ledger::{Ledger, LedgerRow};
use viewledger::archive::{Archive, Kind};
use viewledger::catalog::stream::PARTITION;
use viewledger::config::Config;
use viewledger::position::{Epoch, PartitionId, StreamFrontier, TopicIdentity};
use viewledger::storage::Storage;

use crate::records::{PARTITIONS, Records, STREAM, declared, decoder};

/// Archives `events` records, duplicates and rejected ones included, unless that was done before.
pub async fn archive(config: &Config, events: u64) -> Result<()> {
    let storage = Storage::open(&config.storage.location(), std::iter::empty())?;
    if Archive::peek(&storage, STREAM).await?.is_some_and(|found| found.epoch > Epoch(0)) {
        return Ok(());
    }
    append(config, 20, events).await
}

/// Archives `events` more records, none of which has the key of one with another `seed`.
pub async fn append(config: &Config, seed: u64, events: u64) -> Result<()> {
    let storage = Storage::open(&config.storage.location(), std::iter::empty())?;
    let declared = declared(config).await;
    let stream = declared.names.streams.get(STREAM).expect("a shipped stream");
    let decoder = decoder(&declared, config);
    let mut archive = Archive::open(&storage, STREAM, stream.archive_schema()).await?;
    let before = archive.snapshot();
    let next = (0..PARTITIONS as i32).map(|partition| before.frontier.position(PartitionId(partition)));
    let (mut records, mut keys) = (Records::after(seed, next.collect()), KeyIndex::default());
    let topic = TopicIdentity { cluster_id: "bench".to_owned(), topic_id: "bench".to_owned() };
    let mut frontier = StreamFrontier { topic: Some(topic), ..before.frontier.clone() };
    let mut ledger = before.ledger.clone();
    drop(before);
    let key = stream.key.expect("the stream has a key");
    let mut left = events;
    while left > 0 {
        let mut writer = archive.begin();
        let mut bytes = 0;
        while left > 0 && bytes < config.archive.commit_bytes_max {
            let rows = left.min(config.ingest.micro_batch_rows_max as u64);
            left -= rows;
            let batch = decoder.decode(&mut records.batch(rows as usize), 1_793_600_000_000_000)?;
            bytes += batch.payload_bytes;
            let sound = batch.sound_records();
            let new = keys.insert(sound.column(key), None)?;
            let pieces = [
                (Kind::Event, filter_record_batch(&sound, &new)?),
                (Kind::Duplicate, filter_record_batch(&sound, &not(&new)?)?),
                (Kind::Quarantined, batch.rejects),
            ];
            for (kind, rows) in pieces {
                count(&mut ledger, kind, &rows);
                writer.append_records(kind, &rows)?;
            }
            batch.positions.into_iter().for_each(|(partition, to)| frontier.advance(partition, to));
        }
        archive.commit(&writer.finish(frontier.clone(), ledger.clone())?).await?;
        eprintln!("fill: {} of {events} archived", events - left);
    }
    archive.settle().await;
    Ok(())
}

fn count(ledger: &mut Ledger, kind: Kind, rows: &RecordBatch) {
    let partitions = rows.column_by_name(PARTITION).expect("every record has coordinates");
    for partition in partitions.as_primitive::<Int32Type>().values() {
        let row: &mut LedgerRow = ledger.entry(PartitionId(*partition)).or_default();
        row.passed += 1;
        match kind {
            Kind::Event => row.events += 1,
            Kind::Duplicate => row.duplicates += 1,
            Kind::Quarantined => row.quarantined += 1,
        }
    }
}
