//! What readers see: one pinned snapshot, and the tables made of it.

pub mod catalog;
mod conflicts;
pub mod provider;
pub mod snapshot;
pub mod system;
