//! The end of a simulation, in which nothing goes wrong any more.

use std::sync::Arc;

use viewledger::storage::parquet::verify_file;

use super::World;
use crate::bucket::Weather;
use crate::check::Depth;

impl World<'_> {
    /// Everything heals: then everything that can be read is counted, in this process and in the next.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.weather = Weather::default();
        self.ending = true;
        self.wake_zombie()?;
        let access = Arc::clone(&self.process()?.access);
        access.set_weather(self.weather);
        access.open_gates();
        for source in 0..self.feeds.len() {
            while self.readable(source).is_some_and(|next| {
                let topic = &self.feeds[source].topic;
                next.iter().any(|(partition, at)| *at < topic.end(*partition))
            }) {
                self.deliver(source)?;
                self.seal()?;
                self.settle(source)?;
            }
        }
        self.seal()?;
        (0..self.feeds.len()).try_for_each(|source| self.settle(source))?;
        self.answer(Depth::Everything)?;
        self.refresh()?;
        if self.process()?.refreshes() {
            return Err("the refresh does not end".to_owned());
        }
        self.crash()?;
        self.look();
        self.answer(Depth::Merged)?;
        self.verify_files()
    }

    /// Commits until nothing waits; who dies on the way is restarted.
    fn settle(&mut self, source: usize) -> Result<(), String> {
        for _ in 0..100 {
            if self.process()?.access.is_dead() {
                self.crash()?;
            }
            if self.process()?.backlog() == 0 {
                return Ok(());
            }
            self.commit(source)?;
            (0..self.feeds.len()).try_for_each(|source| self.commit(source))?;
        }
        Err("commits do not end".to_owned())
    }

    /// Every file that a commit names is there and is what was committed.
    fn verify_files(&mut self) -> Result<(), String> {
        let stage = self.stage;
        let process = self.process()?;
        let (snapshot, storage) = (process.core.cell.load(), process.core.storage());
        for file in snapshot.streams.values().flat_map(|stream| stream.archive.files.iter()) {
            let verified = stage.runtime.block_on(file.verify(storage));
            verified.map_err(|error| format!("durable first: {error}"))?;
        }
        for run in snapshot.generation.views.values().flat_map(|view| view.runs.iter()) {
            let path = object_store::path::Path::from(run.path.as_str());
            let verified = stage.runtime.block_on(verify_file(storage, &path, &run.sha256));
            verified.map_err(|error| format!("one swap: {error}"))?;
        }
        Ok(())
    }
}
