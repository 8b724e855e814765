//! Waiting for the truth to arrive, and no longer than it can.

use std::time::Duration;

use tokio::time::Instant;

use crate::answers::{Halves, torn_videos};
use crate::server::{Death, Life};
use crate::truth::Expected;
use crate::verdict::{Answers, Verdict, Violation, judge};

/// How long the answers may stand still before they count as final.
const STALLED_AFTER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Reads until the answers are exact; an error when they are wrong for good or stand still below the truth.
pub(crate) async fn settle(life: &mut Life, expected: &Expected) -> Result<(), Vec<Violation>> {
    let reader = life.wait_ready().await.map_err(|Death(what)| vec![Violation::Died(what)])?;
    let mut last = Answers::default();
    let mut moved = Instant::now();
    loop {
        let answers = Answers::read(&reader).await.map_err(|error| vec![query_failed(life, &error)])?;
        match judge(expected, &answers) {
            Verdict::Exact => break,
            Verdict::Wrong(violations) => return Err(violations),
            Verdict::Behind(violations) if answers == last && moved.elapsed() > STALLED_AFTER => {
                return Err(violations);
            }
            Verdict::Behind(_) => {}
        }
        if answers != last {
            (last, moved) = (answers, Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
    let halves = Halves::read(&reader).await.map_err(|error| vec![query_failed(life, &error)])?;
    halves.add_up().map_err(|violation| vec![violation])?;
    match torn_videos(&reader).await.map_err(|error| vec![query_failed(life, &error)])? {
        0 => Ok(()),
        seen => Err(vec![Violation::Count {
            what: "videos that are not the sum of their halves".into(),
            expected: 0,
            seen,
        }]),
    }
}

pub(crate) fn query_failed(life: &Life, error: &tokio_postgres::Error) -> Violation {
    let reason = error.as_db_error().map_or_else(|| error.to_string(), |error| error.to_string());
    let Death(what) = life.death(&format!("a query failed: {reason}"));
    Violation::Died(what)
}
