//! Functions of the business, one a file.
