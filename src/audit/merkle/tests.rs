#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

/// The definition of RFC 9162, 2.1.1, word for word.
fn naive_root(leaves: &[NodeHash]) -> NodeHash {
    match leaves {
        [] => NodeHash::of(&[]),
        [leaf] => *leaf,
        _ => {
            let mut k = 1;
            while k * 2 < leaves.len() {
                k *= 2;
            }
            node(&naive_root(&leaves[..k]), &naive_root(&leaves[k..]))
        }
    }
}

/// PATH(m, D_n) of 2.1.3.1.
fn naive_path(m: usize, leaves: &[NodeHash]) -> Vec<NodeHash> {
    if leaves.len() < 2 {
        return Vec::new();
    }
    let k = split(leaves.len());
    let (mut path, sibling) = if m < k {
        (naive_path(m, &leaves[..k]), naive_root(&leaves[k..]))
    } else {
        (naive_path(m - k, &leaves[k..]), naive_root(&leaves[..k]))
    };
    path.push(sibling);
    path
}

/// SUBPROOF(m, D_n, b) of 2.1.4.1.
fn naive_consistency(m: usize, leaves: &[NodeHash], whole: bool) -> Vec<NodeHash> {
    if m == leaves.len() {
        return if whole { Vec::new() } else { vec![naive_root(leaves)] };
    }
    let k = split(leaves.len());
    let (mut path, sibling) = if m <= k {
        (naive_consistency(m, &leaves[..k], whole), naive_root(&leaves[k..]))
    } else {
        (naive_consistency(m - k, &leaves[k..], false), naive_root(&leaves[..k]))
    };
    path.push(sibling);
    path
}

fn peaks(leaves: &[NodeHash]) -> Peaks {
    let mut peaks = Peaks::default();
    leaves.iter().for_each(|leaf| peaks.push(*leaf));
    peaks
}

fn leaves(count: usize) -> Vec<NodeHash> {
    (0..count).map(|n| leaf(&n.to_be_bytes())).collect()
}

/// The inputs that the tests of Certificate Transparency use.
fn known_leaves() -> Vec<NodeHash> {
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
        .map(|text| leaf(&from_hex(text).unwrap()))
        .to_vec()
}

fn hashes(texts: &[&str]) -> Vec<NodeHash> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn roots_are_those_of_certificate_transparency() {
    let expected = hashes(&[
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]);
    let known = known_leaves();
    for (size, expected) in expected.iter().enumerate() {
        assert_eq!(root(&known[..size]), *expected, "{size} leaves");
    }
}

#[test]
fn proofs_are_those_of_certificate_transparency() {
    let known = known_leaves();
    let path = inclusion(&known, 0).unwrap();
    let expected = hashes(&[
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]);
    assert_eq!(path, expected);
    let path = consistency(&peaks(&known[..6]), &known[6..]);
    let expected = hashes(&[
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]);
    assert_eq!(path, expected);
    assert_eq!(consistency(&peaks(&known), &[]), Vec::new());
    assert_eq!(consistency(&Peaks::default(), &known), Vec::new());
    assert_eq!(inclusion(&known, 8), None);
}

#[test]
fn a_tree_goes_on_from_its_peaks() {
    let all = leaves(70);
    let mut peaks = Peaks::default();
    for (size, leaf) in all.iter().enumerate() {
        assert_eq!(peaks.root(), naive_root(&all[..size]));
        let resumed = Peaks::new(peaks.size(), peaks.hashes().to_vec()).unwrap();
        assert_eq!(resumed, peaks);
        assert_eq!(Peaks::new(peaks.size() + 1, Vec::new()), None);
        peaks.push(*leaf);
    }
}

#[test]
fn hexadecimal_digits_are_read_and_nothing_else() {
    assert_eq!(from_hex("00fF10"), Some(vec![0, 255, 16]));
    for bad in ["0", "0g", "é0", "+1"] {
        assert_eq!(from_hex(bad), None, "{bad}");
    }
    assert!("ab".parse::<NodeHash>().is_err());
}

/// Every way to bend a path by one step.
fn bent(path: &[NodeHash]) -> Vec<Vec<NodeHash>> {
    let mut all = Vec::new();
    for index in 0..path.len() {
        let mut flipped = path.to_vec();
        flipped[index].0[7] ^= 4;
        all.push(flipped);
        let mut shorter = path.to_vec();
        shorter.remove(index);
        all.push(shorter);
    }
    let longer = path.iter().copied().chain([leaf(b"more")]).collect();
    all.push(longer);
    all
}

proptest! {
    #[test]
    fn a_leaf_is_proven_where_it_is_and_nowhere_else(size in 1_usize..130, index in 0_usize..130) {
        let index = index % size;
        let all = leaves(size);
        let (root, path) = (root(&all), inclusion(&all, index).unwrap());
        prop_assert_eq!(root, naive_root(&all));
        prop_assert_eq!(&path, &naive_path(index, &all));
        let included = |leaf, index: usize, size: usize, path: &[NodeHash], root| {
            is_included(leaf, index as u64, size as u64, path, root)
        };
        prop_assert!(included(all[index], index, size, &path, root));
        for other in 0..size + 2 {
            prop_assert_eq!(included(all[index], other, size, &path, root), other == index, "index {}", other);
        }
        prop_assert!(!included(leaf(b"other"), index, size, &path, root));
        prop_assert!(!included(all[index], index, size, &path, leaf(b"other")));
        for bent in bent(&path) {
            prop_assert!(!included(all[index], index, size, &bent, root));
        }
    }

    #[test]
    fn a_tree_is_proven_to_begin_with_an_older_one(size in 0_usize..130, older in 0_usize..130) {
        let older = older % (size + 1);
        let all = leaves(size);
        let head = |leaves: &[NodeHash]| TreeHead { size: leaves.len() as u64, root: naive_root(leaves) };
        let (old, new) = (head(&all[..older]), head(&all));
        let path = consistency(&peaks(&all[..older]), &all[older..]);
        if older > 0 {
            prop_assert_eq!(&path, &naive_consistency(older, &all, true));
        }
        prop_assert!(is_consistent(old, new, &path));
        for bent in bent(&path) {
            prop_assert!(!is_consistent(old, new, &bent));
        }
        if older > 0 {
            // Another past of the same length.
            let mut forged = all.clone();
            forged[older - 1] = leaf(b"forged");
            prop_assert!(!is_consistent(head(&forged[..older]), new, &path));
            if older < size {
                prop_assert!(!is_consistent(new, old, &path));
                let path = naive_consistency(older, &forged, true);
                prop_assert!(!is_consistent(old, head(&forged), &path));
            }
        }
    }
}
