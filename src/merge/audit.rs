//! The schema `audit`: what proves the archive, for SQL.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray, UInt64Array};
use datafusion::catalog::TableProvider;
use datafusion::common::Result;

use super::certificate::json;
use super::system::{Columns, Surroundings, columns, instant, of_columns};
use crate::audit::seal::{Seal, SealedStream};

/// Names of the tables, and what a row is.
pub const TABLES: [(&str, &str); 1] =
    [("seals", "One row per seal and stream: what the archive was then, and the signature on it.")];

pub fn table(name: &str, around: &Surroundings) -> Result<Option<Arc<dyn TableProvider>>> {
    match name {
        "seals" => of_columns(seals(around)).map(Some),
        _ => Ok(None),
    }
}

fn seals(around: &Surroundings) -> Columns {
    let all = around.seals.all();
    let rows: Vec<(&Seal, &String, &SealedStream)> = all
        .iter()
        .flat_map(|seal| seal.statement.streams.iter().map(move |(name, sealed)| (seal.as_ref(), name, sealed)))
        .collect();
    let sealed_at: TimestampMicrosecondArray =
        rows.iter().map(|(seal, ..)| Some(seal.statement.sealed_at)).collect();
    let mut columns: Columns = columns!(rows,
        "seal": UInt64Array = |(seal, ..)| Some(seal.statement.seal),
        "stream": StringArray = |(_, name, _)| Some(name.as_str()),
        "epochs": UInt64Array = |(.., sealed)| Some(sealed.epochs),
        "records": UInt64Array = |(.., sealed)| Some(sealed.records),
        "root": StringArray = |(.., sealed)| Some(sealed.root.to_string()),
        "frontier": StringArray = |(.., sealed)| Some(json(&sealed.frontier.next)),
        "archive_version": UInt64Array = |(.., sealed)| Some(sealed.version),
        "commit_sha256": StringArray = |(.., sealed)| Some(sealed.commit.to_string()),
        "generation": UInt64Array = |(seal, ..)| Some(seal.statement.generation),
        "previous": StringArray = |(seal, ..)| seal.statement.previous.map(|hash| hash.to_string()),
        "public_key": StringArray = |(seal, ..)| Some(seal.document.public_key.to_string()),
        "signature": StringArray = |(seal, ..)| Some(seal.document.signature.clone()),
    );
    columns.insert(2, ("sealed_at", instant(sealed_at)));
    columns
}
