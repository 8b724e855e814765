//! What a newcomer needs beside the server itself: an embedded broker and a load with a known truth.

pub mod broker;
pub mod load;
