//! How many records may be sent by now. Pure: the caller brings the time.

use std::time::Duration;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this many records, at least one.
    Send(u64),
    /// Nothing is due before this much time has passed.
    Wait(Duration),
    /// The load is complete.
    Done,
}

/// The bounds of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Records a second; `None` for as fast as the brokers take them.
    rate: Option<f64>,
    records: Option<u64>,
    duration: Option<Duration>,
    /// Records that were due while the brokers were away for long and are not made up for.
    forgiven: f64,
}

/// Records in one step at most, so that shutdown and progress are looked at often.
const STEP_MAX: u64 = 1_000;
/// The longest sleep, for the same reason.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// After a stall the load catches up with this much, not with all of it.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

impl Pace {
    pub(super) fn new(rate: Option<f64>, records: Option<u64>, duration: Option<Duration>) -> Self {
        Self { rate, records, duration, forgiven: 0.0 }
    }

    /// `elapsed` since the load began, and the records `sent` in that time.
    pub(super) fn step(&mut self, elapsed: Duration, sent: u64) -> Step {
        let left = self.records.map_or(u64::MAX, |records| records.saturating_sub(sent));
        if left == 0 || self.duration.is_some_and(|duration| elapsed >= duration) {
            return Step::Done;
        }
        let Some(rate) = self.rate else { return Step::Send(left.min(STEP_MAX)) };
        let mut due = rate * elapsed.as_secs_f64() - self.forgiven - count(sent);
        let behind_max = (rate * CATCH_UP_MAX.as_secs_f64()).max(1.0);
        if due > behind_max {
            self.forgiven += due - behind_max;
            due = behind_max;
        }
        if due < 1.0 {
            return Step::Wait(Duration::from_secs_f64(((1.0 - due) / rate).min(WAIT_MAX.as_secs_f64())));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the rate")]
        let due = due as u64;
        Step::Send(due.min(left).min(STEP_MAX))
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 records")]
fn count(records: u64) -> f64 {
    records as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_rate_only_the_bounds_count() {
        let mut pace = Pace::new(None, Some(1_500), None);
        assert_eq!(pace.step(Duration::ZERO, 0), Step::Send(1_000));
        assert_eq!(pace.step(Duration::ZERO, 1_000), Step::Send(500));
        assert_eq!(pace.step(Duration::ZERO, 1_500), Step::Done);
        let mut pace = Pace::new(None, None, Some(Duration::from_secs(2)));
        assert_eq!(pace.step(Duration::from_secs(1), 9), Step::Send(1_000));
        assert_eq!(pace.step(Duration::from_secs(2), 9), Step::Done);
    }

    #[test]
    fn a_rate_lets_through_what_is_due() {
        let mut pace = Pace::new(Some(200.0), None, None);
        assert_eq!(pace.step(Duration::ZERO, 0), Step::Wait(Duration::from_millis(5)));
        assert_eq!(pace.step(Duration::from_millis(100), 0), Step::Send(20));
        assert_eq!(pace.step(Duration::from_millis(100), 20), Step::Wait(Duration::from_millis(5)));
    }

    #[test]
    fn a_long_stall_is_not_made_up_for_in_one_burst() {
        let mut pace = Pace::new(Some(100.0), None, None);
        assert_eq!(pace.step(Duration::from_secs(60), 0), Step::Send(100));
        assert_eq!(pace.step(Duration::from_secs(60), 100), Step::Wait(Duration::from_millis(10)));
        assert_eq!(pace.step(Duration::from_secs(61), 100), Step::Send(100));
    }
}
