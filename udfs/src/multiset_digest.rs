//! `multiset_digest(id)`: a fingerprint of which ids were counted, in whatever order and parts.
//!
//! Two computations that count the same number of views need not have counted the same views. If their digests
//! are equal they have.
//!
//! # Construction
//! LtHash (Bellare and Micciancio, EUROCRYPT 1997; Lewi et al., "Securing Update Propagation with Homomorphic
//! Hashing", 2019) with 1,024 lanes of 16 bits. Each id is expanded to 2,048 bytes by SHA-256 in counter mode, and the
//! lanes of all ids are added modulo 2^16. Addition commutes, so neither order nor cut matters, and the states of
//! two parts are merged by adding lanes. The text that is given is the SHA-256 of the number of ids and the lanes.
//!
//! # Collisions
//! To find two different sets with one digest is a short vector problem with about 200 bits of security; adding
//! one 256-bit hash per id instead would fall to Wagner's generalised birthday attack in about 2^32 steps, so whoever
//! can choose ids could swap views for others.
//!
//! # Overflow
//! Lanes wrap by design. 65,536 times the same id adds nothing to them: the digest tells multisets apart in which
//! no id occurs that often. Views count an id once, by the primary key. The number of ids is kept in 64 bits.
//!
//! # Cost
//! 64 SHA-256 blocks an id, and 2 KB of state a group: for views with few groups, such as one a day.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, UInt64Type};
use datafusion::common::{ScalarValue, internal_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};
use sha2::{Digest, Sha256};

const LANES: usize = 1_024;
/// Bytes of one SHA-256.
const BLOCK_BYTES: usize = 32;
/// Blocks that fill all lanes.
const BLOCKS: u8 = (LANES * 2 / BLOCK_BYTES) as u8;
/// Keeps these hashes apart from all others, and from those of a later version.
const DOMAIN: &[u8] = b"vlms1";

/// `multiset_digest(text)`: 64 hexadecimal digits. NULLs are left out.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct MultisetDigest {
    signature: Signature,
}

impl MultisetDigest {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for MultisetDigest {
    fn name(&self) -> &str {
        "multiset_digest"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null] => {
                Ok(vec![DataType::Utf8])
            }
            // The same number has several texts; which is meant is for the query to say.
            [other] => plan_err!("multiset_digest takes a text, not {other}: cast it, multiset_digest(id::text)"),
            _ => plan_err!("multiset_digest takes one text"),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn is_nullable(&self) -> bool {
        false
    }

    fn default_value(&self, _: &DataType) -> Result<ScalarValue> {
        Lanes::default().evaluate()
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return plan_err!("multiset_digest counts every id: it does not take DISTINCT");
        }
        Ok(Box::<Lanes>::default())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![
            Arc::new(Field::new(format_state_name(args.name, "ids"), DataType::UInt64, false)),
            Arc::new(Field::new(format_state_name(args.name, "lanes"), DataType::Binary, false)),
        ])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

#[derive(Debug)]
struct Lanes {
    ids: u64,
    lanes: Box<[u16; LANES]>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { ids: 0, lanes: Box::new([0; LANES]) }
    }
}

impl Lanes {
    fn add(&mut self, bytes: impl Iterator<Item = u8>) {
        let mut bytes = bytes;
        for lane in self.lanes.iter_mut() {
            let (Some(low), Some(high)) = (bytes.next(), bytes.next()) else { return };
            *lane = lane.wrapping_add(u16::from_le_bytes([low, high]));
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.lanes.iter().flat_map(|lane| lane.to_le_bytes()).collect()
    }
}

/// An id as 2,048 bytes.
fn expanded(id: &str) -> impl Iterator<Item = u8> {
    let begun = Sha256::new().chain_update(DOMAIN).chain_update(id.as_bytes());
    (0..BLOCKS).flat_map(move |block| begun.clone().chain_update([block]).finalize())
}

impl Accumulator for Lanes {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let column = values.first().and_then(|column| column.as_string_opt::<i32>());
        let column = column.ok_or_else(|| internal_datafusion_err!("multiset_digest takes one column of text"))?;
        for id in column.iter().flatten() {
            self.add(expanded(id));
            self.ids += 1;
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (ids, lanes) = match states {
            [ids, lanes] => (ids.as_primitive_opt::<UInt64Type>(), lanes.as_binary_opt::<i32>()),
            _ => (None, None),
        };
        let Some((ids, lanes)) = ids.zip(lanes) else {
            return Err(internal_datafusion_err!("the state of multiset_digest is a number and 2048 bytes"));
        };
        for (ids, lanes) in ids.iter().zip(lanes.iter()) {
            let Some((ids, lanes)) = ids.zip(lanes) else { continue };
            if lanes.len() != LANES * 2 {
                return Err(internal_datafusion_err!(
                    "multiset_digest has {} bytes of state, not 2048",
                    lanes.len()
                ));
            }
            self.add(lanes.iter().copied());
            self.ids += ids;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::UInt64(Some(self.ids)), ScalarValue::Binary(Some(self.bytes()))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let digest = Sha256::new()
            .chain_update(DOMAIN)
            .chain_update(self.ids.to_le_bytes())
            .chain_update(self.bytes())
            .finalize();
        Ok(ScalarValue::Utf8(Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())))
    }

    fn size(&self) -> usize {
        size_of_val(self) + LANES * 2
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use datafusion::arrow::array::StringArray;

    use super::*;

    fn of(ids: &[&str]) -> Lanes {
        let mut lanes = Lanes::default();
        let column: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
        lanes.update_batch(&[column]).unwrap();
        lanes
    }

    fn digest(mut lanes: Lanes) -> String {
        lanes.evaluate().unwrap().to_string()
    }

    #[test]
    fn order_and_cut_do_not_matter() {
        let whole = digest(of(&["a", "b", "c", "a"]));
        assert_eq!(whole, digest(of(&["c", "a", "a", "b"])));
        let mut merged = Lanes::default();
        for part in [&["b", "a"][..], &[], &["a", "c"]] {
            let state: Vec<ArrayRef> = of(part).state().unwrap().iter().map(|s| s.to_array().unwrap()).collect();
            merged.merge_batch(&state).unwrap();
        }
        assert_eq!(whole, digest(merged));
        assert_eq!(whole.len(), 64);
    }

    #[test]
    fn every_difference_shows() {
        let all = [vec![], vec!["a"], vec!["b"], vec!["a", "a"], vec!["ab"], vec!["a", "b"], vec![""]];
        let mut digests: Vec<String> = all.iter().map(|ids| digest(of(ids))).collect();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), all.len());
    }

    /// Digests that were stored mean the same in every later release. Computed by another program.
    #[test]
    fn the_digest_is_fixed() {
        let expected = "c00691c6acbe8afa9e895907e96919503f13b18158f599e8a0db8f6265ec9dd1";
        assert_eq!(digest(of(&["view", "00000000-0000-0000-0000-000000000000"])), expected);
    }
}
