//! Periods that were closed, computed again from the records and tables that were there: `viewledger verify --period`.
//!
//! Changes nothing, and needs no server; one may run beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int32Type, Int64Type};
use serde::Serialize;

use super::{Declared, declare, engine, lines};
use crate::archive::Archive;
use crate::catalog::Fault;
use crate::catalog::closed::{self, ClosedPeriods};
use crate::config::Config;
use crate::engine::Engine;
use crate::merge::closed::Past;
use crate::position::{Offset, PartitionId, StreamFrontier};
use crate::runtime::SystemClock;
use crate::storage::Storage;
use crate::tables::log::{TableLog, versions};

/// What came out for one file of `sql/verify`.
#[derive(Debug, Default, Serialize)]
pub struct Recomputed {
    pub period: String,
    pub file: String,
    /// Of each stream, the sum of the offsets below the frontier of the close.
    pub offsets: BTreeMap<String, i64>,
    /// By table, the version that was read.
    pub tables: BTreeMap<String, u64>,
    /// Each row of the query, as `column = value, ...`.
    pub divergences: Vec<String>,
}

/// Computes `period` again, and of it only what is about `statement`, where that is given.
///
/// # Errors
/// When the period was not closed, or something cannot be read.
pub async fn recompute(
    config: &Config,
    storage: &Storage,
    period: &str,
    statement: Option<&str>,
) -> Result<Vec<Recomputed>> {
    let engine = engine(config.refresh.threads, config.refresh.memory_bytes_max, config)?;
    engine.register_store(storage.url(), storage.store());
    let declared = declare(config, &engine).await.map_err(|faults| anyhow!("{}", lines(&faults)))?;
    let files = closed::load(&config.sql.dir).map_err(|faults| anyhow!("{}", lines(&faults)))?;
    if files.is_empty() {
        bail!(
            "there is no file in {}: nothing says how a closed period is computed",
            config.sql.dir.join("verify").display()
        );
    }
    let (log, tables) =
        TableLog::open(storage, &declared.tables, config.tables.bytes_max, Arc::new(SystemClock)).await?;
    let mut all = Vec::new();
    for file in files {
        let close = Close::find(storage, &log, &file, period).await?;
        let past = Past::new(&engine);
        let mut report = Recomputed { period: period.to_owned(), file: file.file.clone(), ..Recomputed::default() };
        for (table, contents) in tables.iter() {
            // What was written may have been added to since.
            let number = match contents.rules.table.append_only {
                true => contents.version.number,
                false => close.version_of(storage, table).await?,
            };
            past.add_table(table, log.at(table, number).await?)?;
            report.tables.insert(table.clone(), number);
        }
        for (name, stream) in &declared.catalog.streams {
            let Some(archive) = Archive::peek(storage, name).await? else { continue };
            let frontier = close.frontier.get(name).cloned().unwrap_or_default();
            past.add_records(stream, &archive, &frontier)?;
            report.offsets.insert(name.clone(), frontier.next.values().map(|next| next.0).sum());
        }
        let sql = file.query(period).map_err(|reason| anyhow!(reason))?;
        let found = past.rows(&sql).await.with_context(|| file.file.clone())?;
        for batch in &found {
            report.divergences.extend(described(batch, statement)?);
        }
        all.push(report);
    }
    Ok(all)
}

/// What is wrong with the files of `sql/verify`.
pub async fn faults(config: &Config, engine: &Engine, declared: &Declared) -> Vec<Fault> {
    match closed::load(&config.sql.dir) {
        Ok(files) => crate::merge::closed::faults(engine, &files, &declared.names).await,
        Err(faults) => faults,
    }
}

/// What decided about a closed period.
struct Close {
    /// The commit of tables that closed it.
    commit: u64,
    frontier: BTreeMap<String, StreamFrontier>,
    /// Tables that were read in an older version.
    older: BTreeMap<String, u64>,
}

impl Close {
    async fn find(storage: &Storage, log: &Arc<TableLog>, file: &ClosedPeriods, period: &str) -> Result<Self> {
        let table = &file.closed_by;
        for version in versions(storage, table).await? {
            let rows = log.at(table, version.number).await?;
            let periods = texts(&rows, "period")?;
            let Some(row) = periods.iter().position(|found| found.as_deref() == Some(period)) else { continue };
            let counted_with = texts(&rows, &file.counted_with)?.into_iter().nth(row).flatten().unwrap_or_default();
            let older = counted_with
                .split(',')
                .filter_map(|part| part.trim().rsplit_once(' '))
                .filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
            let older = older.collect();
            let commit = version.number;
            let frontier = match number_below(storage, &file.frontier, commit).await? {
                0 => bail!("{}: table {} had no rows when {period} was closed", file.file, file.frontier),
                number => frontier(&log.at(&file.frontier, number).await?, period)?,
            };
            return Ok(Self { commit, frontier, older });
        }
        bail!("period {period} was not closed: there is no row of it in {table}")
    }

    async fn version_of(&self, storage: &Storage, table: &str) -> Result<u64> {
        match self.older.get(table) {
            Some(number) => Ok(*number),
            None => number_below(storage, table, self.commit).await,
        }
    }
}

/// The version that a table had at a commit; 0 when it had none.
async fn number_below(storage: &Storage, table: &str, commit: u64) -> Result<u64> {
    let numbers = versions(storage, table).await?.into_iter().map(|version| version.number);
    Ok(numbers.filter(|number| *number <= commit).max().unwrap_or_default())
}

fn frontier(rows: &RecordBatch, period: &str) -> Result<BTreeMap<String, StreamFrontier>> {
    let (periods, streams) = (texts(rows, "period")?, texts(rows, "stream")?);
    let column = |name: &str, data_type: &DataType| -> Result<Arc<dyn Array>> {
        let column = rows.column_by_name(name).with_context(|| format!("the frontier has no column {name}"))?;
        Ok(cast(column, data_type)?)
    };
    let (partitions, offsets) = (column("partition", &DataType::Int32)?, column("next_offset", &DataType::Int64)?);
    let (partitions, offsets) = (partitions.as_primitive::<Int32Type>(), offsets.as_primitive::<Int64Type>());
    let mut frontier: BTreeMap<String, StreamFrontier> = BTreeMap::new();
    for row in 0..rows.num_rows() {
        let (Some(of), Some(Some(stream))) = (periods.get(row), streams.get(row)) else { continue };
        if of.as_deref() == Some(period) {
            let next = &mut frontier.entry(stream.clone()).or_default().next;
            next.insert(PartitionId(partitions.value(row)), Offset(offsets.value(row)));
        }
    }
    Ok(frontier)
}

/// A column as text.
fn texts(rows: &RecordBatch, column: &str) -> Result<Vec<Option<String>>> {
    let found = rows.column_by_name(column).with_context(|| format!("there is no column {column}"))?;
    let found = cast(found, &DataType::Utf8)?;
    Ok(found.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect())
}

/// Each row in words; those of another statement are left out.
fn described(rows: &RecordBatch, statement: Option<&str>) -> Result<Vec<String>> {
    let names: Vec<String> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    let columns = names.iter().map(|name| texts(rows, name)).collect::<Result<Vec<_>>>()?;
    let mut described = Vec::new();
    for row in 0..rows.num_rows() {
        let cells: Vec<(&str, &str)> = names
            .iter()
            .zip(&columns)
            .map(|(name, column)| (name.as_str(), column.get(row).and_then(Option::as_deref).unwrap_or("nothing")))
            .collect();
        let about = cells.iter().find(|(name, _)| *name == "statement_id").map(|(_, id)| *id);
        if statement.is_none() || about == statement {
            let cells: Vec<String> = cells.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            described.push(cells.join(", "));
        }
    }
    Ok(described)
}
