//! What readers see: one pinned snapshot, and the tables made of it.

pub mod audit;
pub mod catalog;
pub mod census;
pub mod certificate;
pub mod closed;
mod conflicts;
pub mod diff;
pub mod endpoints;
pub mod functions;
pub mod ordinary;
pub mod point;
pub mod provider;
pub mod pulse;
pub mod reconcile;
pub mod refreshes;
mod repeatable;
pub mod snapshot;
pub mod system;
