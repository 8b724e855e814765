//! What readers see: one pinned snapshot, and the tables made of it.

pub mod catalog;
pub mod ordinary;
pub mod provider;
pub mod snapshot;
pub mod system;
