//! Where the rows of a key are: an index over one column, by hash.

use datafusion::arrow::array::ArrayRef;
use datafusion::common::exec_datafusion_err;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::error::Result;

/// The same for every index of the process, so that a key is hashed once for all of them.
const HASHING: RandomState = RandomState::with_seed(0x7669_6577_7369_6e00);

/// The part of an entry that is of the hash; the rest is the row.
const HASH_BITS: u64 = 0xffff_ffff_0000_0000;

/// Entries that share a place in the directory, on average at most: they lie in one line of the cache or two.
const SHARE: usize = 8;

/// The rows of a column by the hash of their values. Nine bytes a row or less.
#[derive(Debug)]
pub struct KeyIndex {
    /// The upper half of the hash, then the row; sorted.
    entries: Box<[u64]>,
    /// Where the entries begin whose hash begins with each value of so many bits, and where the last of them end: one
    /// look into memory instead of one for every halving.
    directory: Box<[u32]>,
    bits: u32,
}

impl KeyIndex {
    /// # Errors
    /// When the column is of a type that cannot be hashed, or has more than 2^32 rows.
    pub fn of(column: &ArrayRef) -> Result<Self> {
        let rows = u32::try_from(column.len())
            .map_err(|_| exec_datafusion_err!("{} rows are too many for an index of keys", column.len()))?;
        let mut entries = key_hashes(column)?;
        for (entry, row) in entries.iter_mut().zip(0..rows) {
            *entry = (*entry & HASH_BITS) | u64::from(row);
        }
        entries.sort_unstable();
        let bits = (entries.len() / SHARE).checked_ilog2().map_or(0, |bits| bits + 1);
        let mut directory = vec![0_u32; (1 << bits) + 1];
        for entry in &entries {
            if let Some(count) = directory.get_mut(place(*entry, bits) + 1) {
                *count += 1;
            }
        }
        let mut end = 0;
        for place in &mut directory {
            end += *place;
            *place = end;
        }
        Ok(Self { entries: entries.into_boxed_slice(), directory: directory.into_boxed_slice(), bits })
    }

    /// At least the rows whose value has this hash, and hardly any others.
    pub fn rows(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let wanted = hash & HASH_BITS;
        let near = match self.directory.get(place(wanted, self.bits)..) {
            Some([start, end, ..]) => self.entries.get(*start as usize..*end as usize).unwrap_or_default(),
            _ => &[],
        };
        let start = near.partition_point(|entry| *entry < wanted);
        let found = near.get(start..).unwrap_or_default();
        found
            .iter()
            .take_while(move |entry| **entry & HASH_BITS == wanted)
            .map(|entry| (entry & !HASH_BITS) as usize)
    }

    pub fn bytes(&self) -> usize {
        size_of_val(self.entries.as_ref()) + size_of_val(self.directory.as_ref())
    }
}

/// The first `bits` of a hash.
fn place(hash: u64, bits: u32) -> usize {
    // None of them: there is one place.
    usize::try_from(hash.checked_shr(64 - bits).unwrap_or(0)).unwrap_or(usize::MAX)
}

/// What [`KeyIndex::rows`] is asked with, for each value of a column of the same type as the one that is indexed.
///
/// # Errors
/// When the column is of a type that cannot be hashed.
pub fn key_hashes(column: &ArrayRef) -> Result<Vec<u64>> {
    let mut hashes = vec![0; column.len()];
    create_hashes([column], &HASHING, &mut hashes)?;
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use datafusion::arrow::array::{DictionaryArray, Int64Array, StringArray};
    use datafusion::arrow::datatypes::Int32Type;
    use proptest::prelude::*;

    use super::*;

    fn found(column: &ArrayRef, wanted: &ArrayRef) -> Vec<Vec<usize>> {
        let index = KeyIndex::of(column).unwrap();
        key_hashes(wanted).unwrap().into_iter().map(|hash| index.rows(hash).collect()).collect()
    }

    proptest! {
        #[test]
        fn every_row_of_a_value_is_found(values in prop::collection::vec(0_i64..50, 0..300), wanted in 0_i64..60) {
            let rows = |same: &dyn Fn(&i64) -> bool| -> Vec<usize> {
                values.iter().enumerate().filter(|(_, value)| same(value)).map(|(row, _)| row).collect()
            };
            let expected = vec![rows(&|value| *value == wanted)];
            let numbers: ArrayRef = Arc::new(Int64Array::from(values.clone()));
            let number: ArrayRef = Arc::new(Int64Array::from(vec![wanted]));
            prop_assert_eq!(found(&numbers, &number), expected.clone());
            let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
            let text: ArrayRef = Arc::new(StringArray::from(vec![wanted.to_string()]));
            let plain: ArrayRef = Arc::new(StringArray::from(texts.clone()));
            prop_assert_eq!(found(&plain, &text), expected.clone());
            let coded: ArrayRef = Arc::new(texts.iter().map(String::as_str).collect::<DictionaryArray<Int32Type>>());
            prop_assert_eq!(found(&coded, &text), expected);
        }

        #[test]
        fn every_value_of_a_large_column_is_found_once(rows in 1_i64..20_000) {
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row * 7)));
            let index = KeyIndex::of(&numbers).unwrap();
            for (row, hash) in key_hashes(&numbers).unwrap().into_iter().enumerate() {
                prop_assert!(index.rows(hash).filter(|found| *found == row).count() == 1, "row {row}");
            }
            let others: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row * 7 + 1)));
            let false_ones: usize = key_hashes(&others).unwrap().into_iter().map(|hash| index.rows(hash).count()).sum();
            prop_assert!(false_ones <= 3, "{false_ones} rows are found that are not there");
        }
    }
}
