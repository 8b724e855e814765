//! Which records were counted already: the exact index of a stream's primary keys.
//!
//! A key enters the index together with its record, and the record's archive commit makes both durable; after a
//! crash the index is rebuilt from the archive alone, so no key is ever claimed for a record that was lost
//! (openmeter#5118). Each key is kept as 16 bytes: a UUID as it is, any other key as the first half of its
//! SHA-256. The index holds every key of the archive: 17 to 34 bytes a record.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::datatypes::{DataType, Int32Type, Int64Type};
use hashbrown::HashTable;
use sha2::{Digest, Sha256};

/// The keys of one stream.
#[derive(Debug, Default)]
pub struct KeyIndex {
    keys: HashTable<u128>,
}

/// A key column of a type that the DDL does not allow.
#[derive(Debug, thiserror::Error)]
#[error("a primary key of type {0} cannot be indexed")]
pub struct KeyTypeError(DataType);

impl KeyIndex {
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Takes keys back whose record turned out not to count: a sound record with the same key still may.
    pub fn remove(&mut self, column: &ArrayRef) -> Result<(), KeyTypeError> {
        for key in keys(column)?.into_iter().flatten() {
            if let Ok(found) = self.keys.find_entry(mix(&key), |other| *other == key) {
                found.remove();
            }
        }
        Ok(())
    }

    /// Adds the key of every row of `column` that is `sound`; None means that all are. True marks the rows whose key
    /// was not there before; of equal keys within the column the first is new. NULL is new always: it identifies
    /// nothing.
    pub fn insert(
        &mut self,
        column: &ArrayRef,
        sound: Option<&BooleanArray>,
    ) -> Result<BooleanArray, KeyTypeError> {
        self.keys.reserve(column.len(), mix);
        let keys = keys(column)?.into_iter().enumerate();
        let is_new = |(row, key): (usize, Option<u128>)| {
            sound.is_none_or(|sound| sound.value(row)) && key.is_none_or(|key| self.insert_one(key))
        };
        Ok(keys.map(is_new).map(Some).collect())
    }

    fn insert_one(&mut self, key: u128) -> bool {
        match self.keys.entry(mix(&key), |other| *other == key, mix) {
            hashbrown::hash_table::Entry::Occupied(_) => false,
            hashbrown::hash_table::Entry::Vacant(slot) => {
                slot.insert(key);
                true
            }
        }
    }
}

fn keys(column: &ArrayRef) -> Result<Vec<Option<u128>>, KeyTypeError> {
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().map(|v| v.map(text_key)).collect(),
        DataType::Utf8View => column.as_string_view().iter().map(|v| v.map(text_key)).collect(),
        DataType::Int64 => column.as_primitive::<Int64Type>().iter().map(|v| v.map(integer_key)).collect(),
        DataType::Int32 => {
            column.as_primitive::<Int32Type>().iter().map(|v| v.map(|v| integer_key(i64::from(v)))).collect()
        }
        other => return Err(KeyTypeError(other.clone())),
    })
}

/// Keys are UUIDs or digests; time-ordered UUIDs still share their high bits, so fold and multiply.
fn mix(key: &u128) -> u64 {
    let folded = (key >> 64) as u64 ^ (*key as u64).rotate_left(32);
    folded.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26) ^ folded
}

fn text_key(text: &str) -> u128 {
    match uuid::Uuid::try_parse(text) {
        Ok(uuid) => uuid.as_u128(),
        Err(_) => digest_key(text.as_bytes()),
    }
}

fn integer_key(value: i64) -> u128 {
    digest_key(&value.to_be_bytes())
}

fn digest_key(bytes: &[u8]) -> u128 {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().take(16).fold(0, |key, byte| (key << 8) | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use datafusion::arrow::array::{Int64Array, StringArray};

    use super::*;

    fn insert(index: &mut KeyIndex, column: impl Array + 'static) -> Vec<bool> {
        let column: ArrayRef = Arc::new(column);
        index.insert(&column, None).unwrap().iter().map(|v| v.unwrap()).collect()
    }

    #[test]
    fn the_first_of_equal_keys_is_new_within_and_across_batches() {
        let mut index = KeyIndex::default();
        let a = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let b = "6ba7b811-9dad-11d1-80b4-00c04fd430c8";
        assert_eq!(insert(&mut index, StringArray::from(vec![a, b, a])), [true, true, false]);
        assert_eq!(insert(&mut index, StringArray::from(vec![b, "other", "other"])), [false, true, false]);
        assert_eq!(insert(&mut index, StringArray::from(vec![None::<&str>, None])), [true, true]);
        assert_eq!(index.len(), 3);
        let mut index = KeyIndex::default();
        assert_eq!(insert(&mut index, Int64Array::from(vec![1, 2, 1])), [true, true, false]);
    }

    #[test]
    fn the_key_of_an_unsound_row_is_not_taken() {
        let mut index = KeyIndex::default();
        let column: ArrayRef = Arc::new(StringArray::from(vec!["a", "a", "b"]));
        let sound = BooleanArray::from(vec![false, true, true]);
        assert_eq!(index.insert(&column, Some(&sound)).unwrap(), BooleanArray::from(vec![false, true, true]));
        assert_eq!(insert(&mut index, StringArray::from(vec!["a", "b"])), [false, false]);
    }

    #[test]
    fn a_key_that_is_taken_back_is_new_again() {
        let mut index = KeyIndex::default();
        assert_eq!(insert(&mut index, StringArray::from(vec!["a", "b"])), [true, true]);
        let taken: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("never seen"), None]));
        index.remove(&taken).unwrap();
        assert_eq!(insert(&mut index, StringArray::from(vec!["a", "b"])), [true, false]);
    }

    #[test]
    fn a_million_keys_in_sequence_stay_apart() {
        let mut index = KeyIndex::default();
        for n in 0..1_000_000_u128 {
            assert!(index.insert_one(n << 64));
            assert!(index.insert_one(n + 1));
        }
        assert_eq!(index.len(), 2_000_000);
    }
}
