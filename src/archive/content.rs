//! What a set of records is, whatever order and files they lie in: the proof that a rewrite kept them.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use sha2::{Digest, Sha256};

use crate::catalog::stream::{OFFSET, PARTITION};

/// The digest of a multiset of records: equal ones hold the same records, each as often.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Content {
    pub(super) rows: u64,
    /// The sum of the digests of all rows, so that order does not matter and a doubled row does not cancel out.
    sum: u128,
    /// By partition; what a person can check when the sums differ.
    pub(super) partitions: BTreeMap<i32, Extent>,
}

/// What one partition has in a set of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) rows: u64,
    pub(super) first: i64,
    pub(super) last: i64,
}

impl Content {
    /// Adds every row, with all its columns.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let fields = batch.schema_ref().fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let rows = RowConverter::new(fields.collect())?.convert_columns(batch.columns())?;
        for row in &rows {
            let digest: [u8; 32] = Sha256::digest(row.as_ref()).into();
            let short = digest.iter().take(16).fold(0_u128, |all, byte| (all << 8) | u128::from(*byte));
            self.sum = self.sum.wrapping_add(short);
        }
        self.rows += batch.num_rows() as u64;
        self.note_offsets(batch);
        Ok(())
    }

    fn note_offsets(&mut self, batch: &RecordBatch) {
        let partitions = batch.column_by_name(PARTITION).and_then(|c| c.as_primitive_opt::<Int32Type>());
        let offsets = batch.column_by_name(OFFSET).and_then(|c| c.as_primitive_opt::<Int64Type>());
        let (Some(partitions), Some(offsets)) = (partitions, offsets) else { return };
        for (partition, offset) in partitions.iter().zip(offsets) {
            let (Some(partition), Some(offset)) = (partition, offset) else { continue };
            let none = Extent { rows: 0, first: offset, last: offset };
            let extent = self.partitions.entry(partition).or_insert(none);
            extent.rows += 1;
            extent.first = extent.first.min(offset);
            extent.last = extent.last.max(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
    use arrow::compute::concat_batches;

    use super::*;

    fn batch(rows: &[(i32, i64, Option<&str>)]) -> RecordBatch {
        let partition: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.0)).collect::<Int32Array>());
        let offset: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.1)).collect::<Int64Array>());
        let text: ArrayRef = Arc::new(rows.iter().map(|row| row.2).collect::<StringArray>());
        RecordBatch::try_from_iter_with_nullable([
            (PARTITION, partition, true),
            (OFFSET, offset, true),
            ("text", text, true),
        ])
        .unwrap()
    }

    fn content(batches: &[RecordBatch]) -> Content {
        let mut content = Content::default();
        batches.iter().for_each(|batch| content.add(batch).unwrap());
        content
    }

    #[test]
    fn neither_order_nor_batches_matter() {
        let rows = [(0, 5, Some("a")), (0, 6, None), (1, 9, Some(""))];
        let one = batch(&rows);
        let other: Vec<_> = rows.iter().rev().map(|row| batch(&[*row])).collect();
        assert_eq!(content(std::slice::from_ref(&one)), content(&other));
        let doubled = concat_batches(one.schema_ref(), [&one, &one]).unwrap();
        assert_eq!(content(&[one.clone(), one]), content(&[doubled]));
    }

    #[test]
    fn every_difference_is_seen() {
        let rows = [(0, 5, Some("a")), (0, 6, Some("b"))];
        let good = content(&[batch(&rows)]);
        for other in [
            vec![rows[0]],
            vec![rows[0], rows[0]],
            vec![rows[0], rows[1], rows[1]],
            vec![(0, 5, Some("b")), (0, 6, Some("a"))],
            vec![(0, 5, Some("a")), (0, 6, None)],
            vec![(1, 5, Some("a")), (0, 6, Some("b"))],
        ] {
            assert_ne!(content(&[batch(&other)]), good, "{other:?}");
        }
    }
}
