//! From what there is to a published generation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Refresher;
use crate::archive::ArchiveSnapshot;
use crate::batch::Generation;
use crate::batch::attempt::Attempt;
use crate::batch::run::{Made, RefreshError, RefreshInput, Workshop};
use crate::merge::catalog::Names;
use crate::runtime::Thrift;

/// What a generation is made from.
pub(super) struct Sources<'a> {
    /// The versions of all reference tables.
    pub tables: BTreeMap<String, u64>,
    /// Views that were not there before, and must not be short of what came meanwhile.
    pub new: &'a BTreeSet<String>,
    pub archives: &'a BTreeMap<String, Arc<ArchiveSnapshot>>,
    /// Views to compute from the whole archive.
    pub full: &'a [String],
}

impl Refresher {
    /// Publishes `current` once more, with other names for what it holds.
    pub(super) async fn publish_names(
        &self,
        current: &Generation,
        names: Arc<Names>,
        tables: BTreeMap<String, u64>,
    ) -> Result<(Made, Arc<Names>), RefreshError> {
        let mut generation = Generation {
            id: current.id.next(),
            created_at: self.means.clock.now(),
            versions: names.versions.clone(),
            tables,
            ..current.clone()
        };
        generation.views.retain(|instance, _| names.views.contains_key(instance));
        self.generations.publish(&generation).await?;
        Ok((Made { generation, fresh: BTreeMap::new() }, names))
    }

    /// Makes the next generation with the views of `names` and publishes it. A version on standby that was there before
    /// and cannot be computed any more is given up, so that it stands in nobody's way. Returns what is left.
    pub(super) async fn publish(
        &self,
        current: &Generation,
        mut names: Arc<Names>,
        sources: Sources<'_>,
        attempt: &Attempt,
    ) -> Result<(Made, Arc<Names>), RefreshError> {
        let _thrift = Thrift::begin();
        loop {
            match self.try_publish(current, &names, &sources, attempt).await {
                Ok(made) => return Ok((made, names)),
                Err(RefreshError::Compute { view, source })
                    if !sources.new.contains(&view) && !names.is_current(&view) =>
                {
                    let error = crate::runtime::chain(&source);
                    tracing::error!(view, error, "a version on standby cannot be computed: it is given up");
                    names = Arc::new(names.without(&view));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the files of the next generation and publishes it. What a failed attempt wrote is deleted.
    async fn try_publish(
        &self,
        current: &Generation,
        names: &Names,
        sources: &Sources<'_>,
        attempt: &Attempt,
    ) -> Result<Made, RefreshError> {
        let Sources { tables, new, archives, full } = sources;
        let workshop = Workshop {
            engine: &self.means.engine,
            threads: self.means.workers.threads,
            storage: &self.means.storage,
            clock: self.means.clock.as_ref(),
            shutdown: &self.means.shutdown,
            attempt,
        };
        let input = RefreshInput {
            current,
            archives,
            views: &names.views,
            versions: &names.versions,
            tables: tables.clone(),
            full,
        };
        let unfit = || self.means.roster.given_up().into_iter().find(|(instance, _)| new.contains(instance));
        let result = match workshop.make(input).await {
            Ok(_) if attempt.is_cancelled() => Err(RefreshError::Cancelled),
            Ok(_) if let Some((view, reason)) = unfit() => Err(RefreshError::Unfit { view, reason }),
            Ok(made) => match self.generations.publish(&made.generation).await {
                Ok(()) => return Ok(made),
                Err(fenced @ RefreshError::Fenced(_)) => Err(fenced),
                // Whether it is published is not known: its files stay until another generation has that number.
                Err(unknown) => {
                    self.undecided.lock().extend(attempt.written());
                    return Err(unknown);
                }
            },
            Err(error) => Err(error),
        };
        self.discard(attempt).await;
        result
    }
}
