//! Whoever fails to prove who they are is answered ever later.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const FIRST_DELAY: Duration = Duration::from_millis(200);
const DELAY_MAX: Duration = Duration::from_secs(5);
/// After so long without a failure an address starts anew.
const MEMORY: Duration = Duration::from_secs(600);
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// Failed attempts by address.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<HashMap<Option<IpAddr>, Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Attempts {
    /// Notes a failure; how long its answer is to wait.
    pub fn failed(&self, address: Option<IpAddr>, now: Instant) -> Duration {
        let mut failures = self.0.lock();
        if failures.len() >= ADDRESSES_MAX && !failures.contains_key(&address) {
            failures.retain(|_, failed| now.saturating_duration_since(failed.last) < MEMORY);
            let oldest = failures.iter().min_by_key(|(_, failed)| failed.last).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| failures.len() >= ADDRESSES_MAX) {
                failures.remove(&oldest);
            }
        }
        let failed = failures.entry(address).or_insert(Failures { count: 0, last: now });
        if now.saturating_duration_since(failed.last) >= MEMORY {
            failed.count = 0;
        }
        let delay = FIRST_DELAY.saturating_mul(1 << failed.count.min(10)).min(DELAY_MAX);
        *failed = Failures { count: failed.count.saturating_add(1), last: now };
        delay
    }

    pub fn succeeded(&self, address: Option<IpAddr>) {
        self.0.lock().remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_end_with_a_success_or_in_time() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        let delays: Vec<u128> = (0..7).map(|_| attempts.failed(address, now).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(attempts.failed(None, now), FIRST_DELAY);
        attempts.succeeded(address);
        assert_eq!(attempts.failed(address, now), FIRST_DELAY);
        assert_eq!(attempts.failed(address, now + MEMORY), FIRST_DELAY);
    }

    #[test]
    fn no_more_addresses_are_remembered_than_may_be() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for number in 0..u32::try_from(ADDRESSES_MAX).unwrap_or(u32::MAX) + 10 {
            attempts.failed(Some(IpAddr::from(number.to_be_bytes())), now);
        }
        assert_eq!(attempts.0.lock().len(), ADDRESSES_MAX);
    }
}
