//! When sorted or combined files are merged: the logarithmic method (Bentley and Saxe, 1980), as in log-structured
//! merge trees. Over n additions a row is rewritten about log n times, and readers find a handful of files.

/// A run is merged with its predecessor while that has fewer rows than this many times its own.
const GROWTH: u64 = 4;
/// More runs than this cost readers more than merging costs the writer.
const RUNS_MAX: usize = 6;

/// How many of the newest runs, given by their rows from the oldest on, should become one; below 2 means none.
pub fn runs_to_merge(rows: &[u64]) -> usize {
    let mut sum = 0_u64;
    let mut count = 0;
    for (index, rows_of_run) in rows.iter().rev().enumerate() {
        let many_left = rows.len() - index > RUNS_MAX;
        if index > 0 && *rows_of_run >= sum.saturating_mul(GROWTH) && !many_left {
            break;
        }
        sum = sum.saturating_add(*rows_of_run);
        count = index + 1;
    }
    if count >= 2 { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_runs_are_merged_and_large_ones_left_alone() {
        assert_eq!(runs_to_merge(&[]), 0);
        assert_eq!(runs_to_merge(&[10]), 0);
        assert_eq!(runs_to_merge(&[1000, 10]), 0);
        assert_eq!(runs_to_merge(&[30, 10]), 2);
        assert_eq!(runs_to_merge(&[1000, 30, 10]), 2);
        assert_eq!(runs_to_merge(&[100, 30, 10]), 3);
        assert_eq!(runs_to_merge(&[100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100]), 0);
    }

    #[test]
    fn the_number_of_runs_stays_bounded_and_the_work_logarithmic() {
        let mut runs: Vec<u64> = Vec::new();
        let mut rewritten = 0;
        for _ in 0..10_000 {
            runs.push(1);
            let combine = runs_to_merge(&runs);
            if combine > 0 {
                let tail = runs.split_off(runs.len() - combine);
                rewritten += tail.iter().sum::<u64>();
                runs.push(tail.iter().sum());
            }
            assert!(runs.len() <= RUNS_MAX + 1, "{runs:?}");
        }
        assert!(rewritten < 10_000 * 14, "{rewritten}");
    }
}
