//! Load generator (in work).
